"""The events of a trace: typed, versioned, one JSON object a line.

Times `t` and all `*_at` fields are seconds since the run began. A reader joins `step`, `message`,
`call` and `audit` events by (`node`, `attempt`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# 2: texts of prompts, token ids of messages.
VERSION = 2


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Event(_Read):
    v: int = VERSION
    t: float = 0.0
    kind: str = ""


class NodeEvent(_Event):
    """Something of one attempt at a node."""

    node: str
    attempt: int


class _Call(NodeEvent):
    agent: str
    round: int
    mode: str
    gate: str
    prompt_tokens: int
    output_tokens: int
    opened_at: float
    finished_at: float
    redone_tokens: int = 0
    phases: dict[str, float] = {}


class NodeInfo(_Read):
    """One node of the graph, as the run saw it."""

    name: str
    agent: str
    round: int = 1
    senders: list[str] = []
    exact: bool = False
    tool: bool = False


class RunStarted(_Event):
    """The first line; `automatic`: kvcomm chose the folder's name, so it may go with older ones."""

    kind: Literal["run"] = "run"
    kvcomm: str
    started: str
    model: str
    device: str
    dtype: str
    mode: str
    seed: int
    graph: str
    nodes: list[NodeInfo]
    answer_node: str
    inputs: dict[str, str]
    now: datetime | None = None
    automatic: bool = False


class StateRead(_Event):
    """What was learned in earlier runs and is used in this one, or why it is not."""

    kind: Literal["state"] = "state"
    path: str | None
    templates: int = 0
    samples: int = 0
    reason: str


class Profiled(_Event):
    """What `auto` knows of the model: divergences of its levels without offsets, in nats."""

    kind: Literal["profile"] = "profile"
    priors: dict[str, float]


class NodeStarted(NodeEvent):
    """An attempt at a node began."""

    kind: Literal["node"] = "node"


class PromptText(_Event):
    """The text of segments, special tokens spelled out; before the first step that names it."""

    kind: Literal["text"] = "text"
    id: int
    text: str


class SegmentStep(NodeEvent):
    """How one segment entered the sequence: `computed + prefix + realigned = tokens`.

    `ahead` of them were prefilled before the last input was complete. Of a realigned segment
    `positions` are the `[start, end)` ranges that were computed, `corrected` says whether offsets
    were added to base KV, which is of the kind `base`, and was read in the prompt of `lender`.
    `text` is the `PromptText`.
    """

    kind: Literal["step"] = "step"
    index: int
    segment: Literal["literal", "placeholder"]
    name: str
    tokens: int
    way: Literal["compute", "prefix", "realign"]
    computed: int
    prefix: int
    realigned: int
    ahead: int
    reason: str
    positions: list[tuple[int, int]] = []
    corrected: bool = False
    base: Literal["message", "alone", "borrowed", "mean"] | None = None
    lender: str = ""
    text: int | None = None

    @property
    def label(self) -> str:
        """The segment as templates spell it."""
        return self.name if self.segment == "literal" else f"{{{self.name}}}"

    @property
    def source(self) -> Literal["computed", "prefix", "realigned"]:
        """Where most of its tokens came from."""
        if self.realigned > max(self.computed, self.prefix):
            return "realigned"
        return "prefix" if self.prefix > self.computed else "computed"


class MessageSent(NodeEvent):
    """A node's message, and the handle of the KV behind it (`None`: text only)."""

    kind: Literal["message"] = "message"
    text: str
    tokens: int
    handle: str | None
    covered: int
    exact: bool
    reason: str
    ids: list[int] = []

    @property
    def behind(self) -> str:
        """What lies behind the text, in words."""
        if self.handle is None:
            return "text only"
        return f"KV behind {self.covered:,} of them, {'exact' if self.exact else 'approximate'}"


class CallFinished(_Call):
    """A call that is done. `ready_at`: the last producer's final token was sampled.

    `ahead_s` was spent on prefilling before that, `phases` are seconds in the engine. `gate` says
    what a learning mode decided for the call as a whole, `offsets` which family corrected its KV.
    """

    kind: Literal["call"] = "call"
    dense: bool
    exact: bool
    ready_at: float
    first_token_at: float
    ttft_s: float
    decode_s: float
    ahead_s: float = 0.0
    first_token: int | None = None
    stop: Literal["stop", "length"]
    offsets: str = ""
    base_tokens: int = 0
    query_tokens: int = 0


class CallInterrupted(_Call):
    """A call that was cancelled under way: with its run, or at its agent's time limit.

    Its steps are the segments that its sequence held. `ready_at` is None where an input was still
    missing, `first_token_at` where no token was sampled yet.
    """

    kind: Literal["interrupted"] = "interrupted"
    text: str
    ready_at: float | None
    first_token_at: float | None
    stop: Literal["interrupted"] = "interrupted"


class ToolFinished(NodeEvent):
    """A tool returned. Its inputs were there at `ready_at`; `cut` texts were too long."""

    kind: Literal["tool"] = "tool"
    texts: dict[str, str]
    tokens: dict[str, int]
    cut: list[str] = []
    ready_at: float
    finished_at: float


class Audited(NodeEvent):
    """A call compared with dense behind its answer; one that failed says why in `error`.

    `used`: it was realigned at this `level`; otherwise it was exact, and the level was tried beside
    it. Divergences are in nats; `bound` is what was expected at most. Without a `level` nothing was
    compared: texts were read once more that stood behind realigned ones, so that others can realign
    them.
    """

    kind: Literal["audit"] = "audit"
    level: str
    used: bool
    target: float
    bound: float | None = None
    divergence: float | None = None
    first_divergence: float | None = None
    top1_agreement: float | None = None
    same_text: bool | None = None
    tokens: int = 0
    error: str = ""

    @property
    def what(self) -> str:
        """What was compared, in words."""
        if not self.level:
            return "reading of new texts"
        return f"{'audit' if self.used else 'probe'} of {self.level}"


class Retried(NodeEvent):
    """An attempt failed and the node starts again after `wait_s`."""

    kind: Literal["retry"] = "retry"
    error: str
    wait_s: float


class Failed(_Event):
    """A node failed for good, or the run did (`node` is None).

    `instead` is what the node's readers have in place of its message. None: the run ends.
    """

    kind: Literal["error"] = "error"
    node: str | None
    error: str
    instead: str | None = None

    @property
    def said(self) -> str:
        """What went wrong, and what its readers were told where the run went on."""
        told = "" if self.instead is None else f'; its readers got "{self.instead}"'
        return self.error + told


class Restarted(_Event):
    """The run began again on another replica: nothing before it counts but the first line."""

    kind: Literal["restart"] = "restart"
    error: str


class Totals(_Read):
    """Tokens over all prompts and answers of a run; `extra` is work beside them.

    Those of a run that did not end well count its interrupted calls, too.
    """

    prompt_tokens: int
    computed_tokens: int
    reused_tokens: int
    output_tokens: int = 0
    extra: dict[str, int]
    wall_s: float
    queued_s: float = 0.0


class RunFinished(_Event):
    """How a run ended; `calls` finished in it. Only audits come behind."""

    kind: Literal["end"] = "end"
    status: Literal["ok", "failed", "interrupted"]
    answer: str | None
    totals: Totals
    calls: int | None = None


_OfRun = RunStarted | StateRead | Profiled | PromptText | Failed | Restarted | RunFinished
_OfNode = NodeStarted | SegmentStep | MessageSent | ToolFinished | Audited | Retried
_OfCall = CallFinished | CallInterrupted
Event = Annotated[_OfRun | _OfNode | _OfCall, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Event)


def parse_event(line: str) -> Event:
    """One line of a trace. Raises `pydantic.ValidationError` for anything else."""
    event: Event = _ADAPTER.validate_json(line)
    return event
