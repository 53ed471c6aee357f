"""Errors a user can act on: what was wrong, what would be right, what to type."""

from __future__ import annotations


class KvcommError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        # Constructors may want something else than the text: an error is pickled without them.
        return _same, (type(self), self.args), self.__dict__


class UsageError(KvcommError):
    """Something the caller can put right before anything runs."""

    exit_code = 2


class TemplateError(UsageError):
    """A prompt template that cannot be read: stray braces, an unknown placeholder."""


class GraphError(UsageError):
    """A graph that cannot run: a cycle, a duplicate name, a placeholder with no producer."""


class ModelError(UsageError):
    """A model that cannot be found, loaded, or used as asked."""


class ReuseRefused(UsageError):
    """A reuse mode asked of a model whose KV cannot be reused; the message names the reason."""


class ContextOverflow(UsageError):
    """A prompt and its answer that do not fit the model's context."""


class StateError(UsageError):
    """Saved offsets that do not belong to this model, or cannot be read."""


class TraceError(UsageError):
    """A trace that is missing or unreadable."""


class NodeFailed(KvcommError):
    """A node failed after all its attempts; `node` is its name."""

    def __init__(self, node: str, attempts: int, cause: BaseException) -> None:
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        what = str(cause) or type(cause).__name__
        super().__init__(f"node `{node}` failed after {tries}: {what}")
        self.node = node
        self.attempts = attempts


class NodeTimeout(KvcommError):
    """A node took longer than its agent's `timeout_s`."""

    def __init__(self, node: str, seconds: float) -> None:
        super().__init__(f"node `{node}` took longer than its timeout of {seconds:g} s")
        self.node = node


class RunTimeout(KvcommError):
    """A run took longer than its `timeout_s`; `doing` is what it was at."""

    def __init__(self, seconds: float, doing: str = "") -> None:
        at = f", {doing}" if doing else ""
        super().__init__(f"the run took longer than its timeout of {seconds:g} s{at}")
        self.seconds = seconds


class RunCancelled(KvcommError):
    """A run was ended from elsewhere: its session was closed."""

    def __init__(self) -> None:
        super().__init__("the session was closed while this run was under way")


class OutOfMemory(KvcommError):
    """The device has no memory left, even after everything was let go that can be."""

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"out of memory while {doing}, also after caches were emptied: lower --memory, "
            "shorten prompts or answers, or use a smaller --dtype"
        )


class NotANumber(KvcommError):
    """A model's logits are no numbers."""

    def __init__(self, dtype: object) -> None:
        kind = str(dtype).removeprefix("torch.")
        advice = "try --dtype float32" if "16" in kind else "check its weights"
        super().__init__(f"the model returned NaN or infinite logits ({kind}): {advice}")


class ServerError(KvcommError):
    """A model server that cannot be reached, or failed."""


class StartOver(KvcommError):
    """A sequence holds what a plan for the whole prompt has no use for: it starts over.

    `base_tokens` were computed for base KV meanwhile.
    """

    def __init__(self, base_tokens: int = 0) -> None:
        super().__init__()
        self.base_tokens = base_tokens


class Preempted(KvcommError):
    """A call that worked ahead was preempted by one that is ready; it begins again later."""


class ReplicaLost(KvcommError):
    """A replica is gone, and what was under way on it."""


def _same(kind: type[KvcommError], args: tuple[object, ...]) -> KvcommError:
    error = kind.__new__(kind)
    error.args = args
    return error
