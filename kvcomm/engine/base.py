"""The engine seam: what the runtime asks of whatever runs the model. No tensors cross it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Codec, Segment, Template
from kvcomm.reuse.plan import Fact, Step, Verdict, Way
from kvcomm.sampling import Sampling

# Lower runs first. A ready call's inputs are complete; a row ahead still waits for some; work in
# the background (audits) waits until nothing else is due.
READY, AHEAD, BACKGROUND = 0, 1, 2
# Two rows are compared over this many tokens of dense's answer: divergences, and whole texts.
COMPARED, SAME_TEXT = 24, 32


@dataclass(frozen=True)
class Capabilities:
    """What an engine does with KV; `reason` says why it does not do more.

    `exact`: equal prefixes are computed once, and rows are extended ahead of their last input.
    `reuse`: rows can be filled with the KV of other rows, and realigned.
    """

    reuse: bool
    exact: bool
    reason: str = ""


@dataclass(frozen=True)
class Call:
    """What a sequence is opened for.

    `capacity` slots hold the prompt and the answer. `messages` are the placeholders that carry
    messages, the others carry inputs. A call that `borrows` has base KV of an input only where its
    segment has a handle on it, as another call read it; otherwise it is made, of the input alone.
    `reads_prefix` and `feeds_prefix` say what it does with the prefix cache. `offsets` names the
    family of offset models it asks and teaches. `namespace` keeps tenants apart. Lower `priority`
    runs first; see `hurry`. `next_uses` are the engine's steps at which another call will read the
    same input. `run` names the call's run, whose calls an engine of several replicas keeps
    together, but for those that ask for a `replica` by its number. Engines without replicas have no
    use for either. A call that `goes_on` is one turn of a conversation: the next turn's prompt
    begins with its prompt and its answer.
    """

    node: str
    template: Template
    capacity: int
    messages: frozenset[str] = frozenset()
    borrows: bool = False
    reads_prefix: bool = False
    feeds_prefix: bool = False
    offsets: str = ""
    namespace: str = ""
    priority: int = 0
    next_uses: Mapping[str, int] = field(default_factory=dict)
    run: str = ""
    replica: int | None = None
    goes_on: bool = False

    def borrowed(self, name: str) -> bool:
        """Whether base KV of the placeholder `name` is that of another call that read it."""
        return self.borrows and name not in self.messages


@dataclass(frozen=True)
class Answer:
    """How a finished prompt is answered: the sampling, and the seed of its own generator.

    `record` keeps the logits, so that other rows can be compared with this one.
    """

    sampling: Sampling
    seed: int = 0
    record: bool = False


@dataclass(frozen=True)
class Extended:
    """What became of one segment: `computed + prefix + realigned` = the tokens that were appended.

    `positions` are those computed of a realigned one, what was done ahead with them; the others are
    `corrected` by offsets, or only rotated.
    """

    way: Way
    computed: int
    prefix: int
    realigned: int
    reason: str
    positions: tuple[int, ...] = ()
    corrected: bool = False


@dataclass(frozen=True)
class Arrived:
    """A stretch of a prompt that was in the row at `at`; `prefix` of its tokens, from its start on,
    were found in a prefix cache. `again` tokens before it were computed once more.
    """

    at: float
    tokens: int
    prefix: int
    again: int = 0


@dataclass(frozen=True)
class Token:
    """A sampled token; `at` is the clock (`time.perf_counter`) when it was sampled.

    `last` says why decoding ended with it: a stop token (which is no part of the text) or the
    length limit.
    """

    id: int
    at: float
    last: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Divergence:
    """How far a row is from the dense one, along dense's greedy continuation.

    `mean` is the mean KL(dense ‖ row) in nats over the first 24 tokens, `first` that of the first
    token, `top1` the share of those tokens on which both agree, `same_text` whether greedy
    decoding of the row would give dense's first 32 tokens.
    """

    mean: float
    first: float
    top1: float
    same_text: bool


@dataclass(frozen=True)
class Survey:
    """The segments with handles on their base KV, the facts about them, and what bases cost."""

    segments: tuple[Segment, ...]
    facts: tuple[Fact, ...]
    base_tokens: int


@dataclass(frozen=True)
class Learned:
    """What the engine remembers from earlier runs: templates, samples, and why."""

    path: str | None
    templates: int
    samples: int
    reason: str


@dataclass
class Phases:
    """Seconds a sequence spent in the engine, by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        """Count `seconds` under `phase`."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class EngineSequence(Protocol):
    """One row: a prompt that grows left to right, then an answer. One operation at a time.

    Cancelling an operation leaves the row unusable except for `close`.
    """

    phases: Phases

    @property
    def length(self) -> int:
        """Filled slots."""

    @property
    def exact(self) -> bool:
        """Whether everything in the row was computed from computed KV."""

    @property
    def arrived(self) -> Sequence[Arrived] | None:
        """How the prompt came together, where that is known only once it is answered.

        None where it is as `extend` said.
        """

    async def survey(
        self,
        segments: Sequence[Segment],
        *,
        literals: bool = True,
        last: bool = True,
    ) -> Survey:
        """Find base KV for every segment, and ask the offset models about them.

        The segments follow those surveyed before; `last` says that the prompt ends with them. Base
        KV of inputs, unless the call borrows it, and of `literals`, if asked, is made where it is
        not in the store.
        """

    async def extend(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        *,
        settle: bool = True,
        answer: Answer | None = None,
    ) -> list[Extended]:
        """Append what is not done of segments: fill what is reused, compute the rest in one go.

        With `settle` the tokens are final, and the row is offered to the prefix cache once they
        are computed. `answer` ends the prompt: its last token is computed, and sampling begins at
        once; `decode` tells the tokens. Segments of realign steps are surveyed ones. A realign step
        whose KV has left the store computes its segment, and the reason says so.
        """

    async def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots. Raises `ContextOverflow` beyond the model's context."""

    async def settle(self) -> None:
        """Everything in the row is final: offer it to the prefix cache."""

    async def truncate(self, length: int) -> None:
        """Forget the slots from `length` on. They must not have been settled."""

    def decode(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they are sampled; the final one has `last` set."""

    async def stop(self) -> None:
        """End the answer here: no further token is sampled."""

    async def publish(self, message: Outgoing, uses: Sequence[int]) -> Handle | None:
        """A handle on the KV of a message decoded here, pinned for the steps at which it is read.

        None when no token of it has KV, or the store has no room.
        """

    async def lend(self, start: int, tokens: int, uses: Sequence[int]) -> Handle | None:
        """A handle on the KV of a text in this prompt, pinned for the steps at which it is read.

        None when one of its `tokens` slots from `start` on is not exact, or the store has no room.
        """

    async def observe(self, learn: Sequence[int], offsets: str | None = None) -> None:
        """Learn offsets from this computed row, for the surveyed segments at these indices.

        They teach the family `offsets`, or the call's own. Waits until no call is on its way to
        its first token; from then on every call sees what was learned.
        """

    async def compare(self, dense: EngineSequence) -> Divergence:
        """How far this row's prompt is from `dense`, which answered greedily and recorded.

        Costs one forward over dense's tokens. The row is as it was afterwards.
        """

    def hurry(self, priority: int) -> None:
        """Change the sequence's priority."""

    async def lost(self) -> None:
        """Wait until the row has lost its room to a call that is ready."""

    async def close(self) -> None:
        """Give the row back. Safe to call twice."""


class Engine(Protocol):
    """Runs one model. Sequences of all sessions share its steps, store and prefix cache.

    `fingerprint` names the model as it runs here, `weights` its weights alone, whatever the dtype.
    `steps` counts the calls answered so far: the clock by which uses of KV are foretold.
    """

    model: str
    device: str
    dtype: str
    fingerprint: str
    weights: str
    max_context: int
    steps: int
    capabilities: Capabilities

    @property
    def codec(self) -> Codec:
        """The model's tokenizer."""

    def check(self, call: Call) -> None:
        """Raise `ContextOverflow` when the call may not fit the model's context.

        Raises `UsageError` for a call that asks for what the engine does not have.
        """

    def open(self, call: Call) -> EngineSequence:
        """A new, empty row. Raises `ContextOverflow` when `capacity` exceeds the context."""

    async def enter(self, call: Call) -> EngineSequence:
        """A new row for a call that is ready, when there is room for it."""

    def spare(self, call: Call) -> EngineSequence | None:
        """A new row for a call that can wait, or None when there is no room for it now.

        It may lose its room to a call that is ready: its operations then raise `Preempted`.
        """

    async def release(self, handle: Handle, use: int) -> None:
        """Undo the pin of a published or lent handle for the reader at step `use`."""

    async def outlook(self, call: Call) -> dict[str, Verdict]:
        """What offset models say of the placeholders of a call's template, whatever their texts."""

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """Bytes of what the offset models of a family have learned in a namespace."""

    async def load_state(self, folder: Path, namespace: str = "") -> Learned:
        """Read what a namespace has learned. Raises `StateError` for another model's folder."""

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what a namespace has learned and the folder does not hold; returns the bytes."""

    async def quiet(self) -> None:
        """Wait until nothing is left to compute ahead or for a first token."""

    @property
    def before_close(self) -> set[Callable[[], object]]:
        """What is called when the engine is closed, while it still works."""

    def close(self) -> None:
        """Stop the engine; sequences still open fail."""
