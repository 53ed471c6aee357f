"""The engine seam: what the runtime asks of whatever runs the model. No tensors cross it.

Commands go in (extend, answer, publish, close), usage and tokens come out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from kvcomm.engine.usage import Arrival, SegmentUsage
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Codec, Segment, Template
from kvcomm.reuse.plan import BaseKind, Predictability
from kvcomm.reuse.policy import SHADOW, Policy, ReuseOptions
from kvcomm.sampling import Sampling

# Lower runs first. A ready call's inputs are complete; one ahead still waits for some; background
# work (audits) gets what is left, and a small share where nothing is.
READY, AHEAD, BACKGROUND = 0, 1, 2
# Two prompts are compared over this many tokens of dense's answer: divergences, and whole texts.
COMPARED, SAME_TEXT = 24, 32


@dataclass(frozen=True)
class Capabilities:
    """What an engine does with KV; `reason` says why it does not do more.

    `exact`: equal prefixes are computed once, and prompts are prefilled ahead of their last input.
    `reuse`: prompts can be filled with the KV of other prompts, and realigned.
    """

    reuse: bool
    exact: bool
    reason: str = ""


@dataclass(frozen=True)
class CallSpec:
    """What a sequence is opened for.

    `capacity` tokens are prompt and answer, as far as is known; `answer_tokens` of them are kept
    for the answer. `reuse` are the options of the call's policy. `messages` are the placeholders
    that carry messages, the others carry inputs. `shares`: what it computes of inputs is kept for
    other calls. `namespace` keeps tenants apart. A call that `continues` is one turn of a
    conversation: the next turn's prompt begins with its prompt and its answer. `followed`:
    others are ready as soon as it has answered.
    """

    node: str
    template: Template
    capacity: int
    answer_tokens: int = 0
    reuse: ReuseOptions = field(default_factory=ReuseOptions)
    messages: frozenset[str] = frozenset()
    shares: bool = False
    namespace: str = ""
    priority: int = READY
    continues: bool = False
    followed: bool = False


@dataclass(frozen=True)
class Answer:
    """How a finished prompt is answered: the sampling, and the seed of its own generator.

    `record` keeps the logits, so that other sequences can be compared with this one.
    """

    sampling: Sampling
    seed: int = 0
    record: bool = False


@dataclass(frozen=True)
class Token:
    """A sampled token; `at` is the clock (`time.perf_counter`) when it was sampled.

    `last` says why the answer ended with it: a stop token (which is no part of the text) or the
    length limit.
    """

    id: int
    at: float
    last: Literal["stop", "length"] | None = None


class Extended(NamedTuple):
    """What became of the segments of one `extend`, and what the policy decided.

    `base_tokens` were computed for base KV that was missing, `query_tokens` a first time, to see
    what they attend to.
    """

    segments: list[SegmentUsage]
    decision: str
    dense: bool
    base_tokens: int = 0
    query_tokens: int = 0


@dataclass(frozen=True)
class Divergence:
    """How far a prompt is from the dense one, along dense's greedy continuation.

    `mean` is the mean KL(dense ‖ other) in nats over the first 24 tokens, `first` that of the first
    token, `top1` the share of those tokens on which both agree, `same_text` whether greedy
    decoding would give dense's first 32 tokens.
    """

    mean: float
    first: float
    top1: float
    same_text: bool


@dataclass(frozen=True)
class Variant:
    """A prompt to be compared with dense: as `policy` fills it.

    `at` is what an earlier sequence had learned (`EngineSequence.moment`; None: what is known now).
    `call` is the call that it is filled for, where that is another one. With `measured` layers the
    policy sees how far base KV is from dense's there.
    """

    policy: Policy
    at: object = None
    call: CallSpec | None = None
    measured: int = 0


@dataclass(frozen=True)
class Compared:
    """What came of one variant; `tokens` were computed to find out. A `dense` plan needs none."""

    segments: list[SegmentUsage]
    decision: str
    dense: bool
    divergence: Divergence | None
    tokens: int


@dataclass(frozen=True)
class ShadowEvaluation:
    """The variants in order, and the tokens that the dense prompt and its answer took."""

    variants: list[Compared]
    tokens: int


@dataclass(frozen=True)
class LearnedState:
    """What the engine remembers from earlier runs: templates, samples, and why."""

    path: str | None
    templates: int
    samples: int
    reason: str


@dataclass
class Phases:
    """Seconds that the engine spent on a sequence, by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        """Count `seconds` under `phase`."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class EngineSequence(Protocol):
    """A prompt that grows left to right, then its answer. One operation at a time.

    It takes memory from its first `extend` on. An operation that is cancelled leaves the sequence
    unusable except for `close`.
    """

    phases: Phases

    @property
    def length(self) -> int:
        """Tokens so far."""

    @property
    def exact(self) -> bool:
        """Whether all its KV was computed from computed KV."""

    @property
    def arrivals(self) -> tuple[Sequence[Arrival], int] | None:
        """How the prompt came together, where that is known only once it is answered.

        Its stretches, and the tokens that were computed twice. None where `extend` said it all.
        """

    @property
    def moment(self) -> object:
        """What the offset models knew when the prompt was realigned, for `evaluate`."""

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
    ) -> Extended:
        """Append segments: look them up, let the policy plan, fill what is reused, compute the
        rest.

        `last` ends the prompt, and says how it is answered; `answer` gives the tokens. With
        `settle` the tokens are final: the prefix cache may hold them. Waits for room at priority
        `READY`; raises `Preempted` where there is none at another, or when the room is taken
        away. Raises `StartOver` for a plan that what is there is of no use for, and
        `ContextOverflow` beyond the model's context.
        """

    async def truncate(self, length: int) -> None:
        """Forget what stands behind `length`. It must not have been settled."""

    def answer(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they are sampled; the final one has `last` set."""

    async def stop(self, kept: int) -> None:
        """End the answer here; its first `kept` tokens count."""

    async def publish(self, message: Outgoing, readers: int) -> Handle | None:
        """A handle on the KV of a message answered here, for so many readers.

        Each of them lets go of it with `Engine.release`. None when no token of it has KV.
        """

    async def finish(self, segments: Sequence[Segment] = (), offsets: str = "") -> None:
        """The message is out: settle what was answered, and learn what the plan asked for.

        A computed prompt teaches the family `offsets` the placeholders among its `segments` whose
        base KV is known, and what it shares of them is base KV for others. That waits until nobody
        is on the way to a first token, but whoever asks the offset models of this template finds
        it learned.
        """

    def set_priority(self, priority: int) -> None:
        """Change the sequence's priority."""

    async def close(self) -> None:
        """Give the memory back. Safe to call twice."""


class Engine(Protocol):
    """Runs one model. Sequences of all sessions share its steps, caches and offset models.

    `fingerprint` names the model as it runs here, `weights` its weights alone, whatever the dtype.
    """

    model: str
    device: str
    dtype: str
    fingerprint: str
    weights: str
    max_context: int
    capabilities: Capabilities

    @property
    def codec(self) -> Codec:
        """The model's tokenizer."""

    def check(self, call: CallSpec) -> None:
        """Raise `ContextOverflow` when the call may not fit the model's context.

        Raises `UsageError` for a call that asks for what the engine does not have.
        """

    def open(self, call: CallSpec) -> EngineSequence:
        """A new, empty sequence. Raises `ContextOverflow` when it cannot fit the context."""

    def retain(self, handle: Handle) -> bool:
        """One more reader of a message's KV; False where too much is retained already."""

    def release(self, handle: Handle) -> None:
        """One reader of a message's KV has done with it."""

    def predictability(self, call: CallSpec, offsets: str) -> dict[str, Predictability]:
        """What a family of offset models says of a template's placeholders, whatever their texts.

        An input is one that another prompt has read.
        """

    def bases(self, call: CallSpec, texts: Mapping[str, Sequence[int]]) -> Mapping[str, BaseKind]:
        """The kind of base KV that a call's inputs have, by name, where they have any."""

    async def evaluate(
        self,
        call: CallSpec,
        segments: Sequence[Segment],
        variants: Sequence[Variant],
        *,
        reference: Policy = SHADOW,
        learn: Sequence[str] = (),
        distinct: bool = True,
        tokens: int = SAME_TEXT,
    ) -> ShadowEvaluation:
        """Compute a prompt, answer it with `tokens`, greedily, and compare variants with that.

        Behind everything else, and nothing is left of it but what the offset models of the
        families `learn` have learned from the computed prompt, and the base KV that `reference`
        asks for. Of `distinct` variants those with
        equal plans are compared once, and dense ones not at all. Raises `KvcommError` when there is
        no room.
        """

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """Bytes of what the offset models of a family have learned in a namespace."""

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """Read what a namespace has learned. Raises `StateError` for another model's folder."""

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what a namespace has learned and the folder does not hold; returns the bytes."""

    async def drain(self) -> None:
        """Wait until no prompt is left to prefill, but in the background."""

    @property
    def before_close(self) -> set[Callable[[], object]]:
        """What is called when the engine is closed, while it still works."""

    def close(self) -> None:
        """Stop the engine; sequences still open fail."""


@runtime_checkable
class Replicated(Protocol):
    """An engine of replicas, each of which runs whole graphs; it opens no sequences itself.

    It has what else an `Engine` says of itself, its state and its end.
    """

    async def place(self, key: str = "", *, stay: bool = False) -> Any:
        """A replica for one more task; what has the same `key` should, or has to `stay` there."""

    def pickled(self, task: Any, parts: Mapping[str, Any]) -> bytes:
        """A task as it is sent. Raises `UsageError` that names which of its `parts` cannot be."""

    async def do(
        self,
        replica: Any,
        task: bytes,
        receive: Callable[[Any], Awaitable[None]],
        *,
        learns: bool = False,
    ) -> Any:
        """Run a task on a replica, hand on what it emits, and return what it returns.

        A task is `async (host, emit) -> value`; the host has an `engine`, and a `session(name,
        make)` for each name. One that `learns` is told first what other replicas have learned.
        Raises what the task raises, and `ReplicaLost`. Cancelled, it cancels the task, and waits
        for what that still emits.
        """

    def hear(self, name: str, heard: Callable[[Any], None]) -> None:
        """Call `heard` with what replicas tell of `name` behind the answers, up to None."""

    def unhear(self, name: str) -> None:
        """Nothing more is wanted of `name`: call with None, if that has not come yet."""
