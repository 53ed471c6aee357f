"""A tool: a node of a graph whose message comes from code, not from a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from kvcomm.agents.agent import Care, check_name
from kvcomm.errors import KvcommError, UsageError
from kvcomm.message import well_formed

Found = str | Sequence[str]
Run = Callable[[Mapping[str, str]], Found | Awaitable[Found]]


@dataclass(frozen=True)
class Tool(Care):
    """A search, a test run, a look at a clock: `run(texts)` returns its message.

    `texts` holds the run's inputs and the messages of the tool's predecessors by name. `run` is
    called in a thread; an `async` one is awaited on the run's event loop, which it must not hold
    up, and is cancelled with its call. A tool with `outputs` returns as many texts, and each is a
    placeholder of its own in the prompts of those who hear it, so their KV is shared text by text.
    What is longer than `max_tokens` is cut, and the trace says so. What happens when a call fails
    is said by the options of `Care`; a thread that hangs is left behind, because nobody can stop
    it.

    Raises `UsageError` for names that cannot stand in a template.
    """

    name: str
    run: Run
    outputs: tuple[str, ...] = ()
    max_tokens: int = 512

    def __post_init__(self) -> None:
        for name in (self.name, *self.outputs):
            check_name(name)
        if len({self.name, *self.outputs}) <= len(self.outputs):
            raise UsageError(f"tool `{self.name}`: every output needs a name of its own")
        if self.max_tokens < 1:
            raise UsageError(f"tool `{self.name}`: max_tokens must be at least 1")
        self.check_care(f"tool `{self.name}`")

    @property
    def exact(self) -> bool:
        """A tool reads no KV."""
        return False

    def texts(self, found: Found) -> dict[str, str]:
        """What `run` returned, by the name of each text. Raises `KvcommError` for another shape."""
        if not self.outputs and isinstance(found, str):
            return {self.name: well_formed(found)}
        if self.outputs and not isinstance(found, str) and len(found) == len(self.outputs):
            named = dict(zip(self.outputs, found, strict=True))
            if all(isinstance(text, str) for text in named.values()):
                return {name: well_formed(text) for name, text in named.items()}
        wanted = f"{len(self.outputs)} texts" if self.outputs else "a text"
        given = type(found).__name__ if isinstance(found, str) else f"{found!r:.60}"
        raise KvcommError(f"tool `{self.name}` must return {wanted}, not {given}")
