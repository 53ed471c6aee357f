"""A run as its trace tells it: its calls and tools, each with all that happened to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

from kvcomm.trace import events as ev
from kvcomm.trace.events import Audited, CallFinished, CallInterrupted, Event, SegmentStep

# Where a prompt's tokens came from; `ahead` counts some of them again.
SOURCES = ("computed", "prefix", "realigned")
COUNTS = (*SOURCES, "ahead")
# The parts of a call, one behind the other.
PARTS = ("waits", "ahead", "prefill", "decode")
NOT_OF_CALLS = (ev.ToolFinished, ev.Retried)

E = TypeVar("E")


class TimelineBar(NamedTuple):
    """A call or a tool over the time of its run: parts are `(begin, end, name)`."""

    name: str
    parts: list[tuple[float, float, str]]
    view: CallView | None


@dataclass
class CallView:
    """Everything a trace says of one attempt at a node.

    `call` is there once it has finished, `interrupted` if it was cancelled under way instead.
    """

    node: str
    attempt: int
    steps: list[SegmentStep] = field(default_factory=list)
    message: ev.MessageSent | None = None
    call: CallFinished | None = None
    interrupted: CallInterrupted | None = None
    audits: list[Audited] = field(default_factory=list)

    def add(self, event: Event) -> None:
        if event.kind in ("message", "call", "interrupted"):
            setattr(self, event.kind, event)
        elif event.kind == "step":
            self.steps.append(event)
        elif event.kind == "audit":
            self.audits.append(event)

    @property
    def title(self) -> str:
        """The node, and which attempt when it is not the first."""
        return self.node if self.attempt == 1 else f"{self.node} #{self.attempt}"

    @property
    def how(self) -> str:
        """What the mode decided for the call as a whole, or why it has no end."""
        if self.call:
            return self.call.gate or ("dense" if self.call.dense else "reuse")
        return "interrupted" if self.interrupted else "did not finish"

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, as far as it is known."""
        return self.call.prompt_tokens if self.call else sum(step.tokens for step in self.steps)

    @property
    def ended(self) -> CallFinished | CallInterrupted | None:
        """How it ended; None where the trace does not say."""
        return self.call or self.interrupted

    @property
    def output_tokens(self) -> int | None:
        """The tokens that were sampled; None where the trace does not say."""
        return self.ended.output_tokens if self.ended else None

    @property
    def parts(self) -> list[tuple[float, float, str]]:
        """When it waited, prefilled ahead, prefilled and decoded: `(begin, end, part)`.

        An interrupted call is in its last part when it ends. Empty for a call without times.
        """
        if (ended := self.ended) is None:
            return []
        begin, end = ended.opened_at, ended.finished_at
        ready = end if ended.ready_at is None else ended.ready_at
        first = end if ended.first_token_at is None else ended.first_token_at
        # Streaming prefill is drawn at the end of the wait: its place is not recorded.
        ahead = max(begin, ready - (self.call.ahead_s if self.call else 0.0))
        times = (begin, ahead, ready, first, end)
        return list(zip(times, times[1:], PARTS, strict=False))

    @property
    def tokens(self) -> dict[str, int]:
        """How the prompt's tokens were obtained, over all segments."""
        return {name: sum(getattr(step, name) for step in self.steps) for name in COUNTS}

    @property
    def divergence(self) -> float | None:
        """What an audit measured of the call itself; probes beside it do not count."""
        found = [audit.divergence for audit in self.audits if audit.used]
        return next((value for value in found if value is not None), None)


@dataclass
class TraceRun:
    """A run as its trace tells it. `finished` is None for a run that was cut off."""

    path: Path
    started: ev.RunStarted
    events: list[Event]
    skipped: int

    def __post_init__(self) -> None:
        views: dict[tuple[str, int], CallView] = {}
        for event in self.events:
            if isinstance(event, ev.NodeEvent) and not isinstance(event, NOT_OF_CALLS):
                if event.kind == "node" and self.info(event.node).tool:
                    continue
                key = (event.node, event.attempt)
                views.setdefault(key, CallView(*key)).add(event)
        self.calls = list(views.values())
        self.tools = self.of(ev.ToolFinished)
        self.state = self.of(ev.StateRead)
        self.retries = self.of(ev.Retried)
        self.errors = self.of(ev.Failed)
        self.texts = {event.id: event.text for event in self.of(ev.PromptText)}
        self.finished = next(reversed(self.of(ev.RunFinished)), None)
        if self.finished is not None and (spent := sum(a.tokens for a in self.audits())):
            # What was computed for audits is known only behind the end.
            totals = self.finished.totals
            totals = totals.model_copy(update={"extra": totals.extra | {"audit": spent}})
            self.finished = self.finished.model_copy(update={"totals": totals})

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def text(self, step: SegmentStep) -> str | None:
        """The text of a segment; None in a trace that holds no texts."""
        return None if step.text is None else self.texts.get(step.text)

    def audits(self) -> list[Audited]:
        """What was measured of the calls, in their order."""
        return [audit for view in self.calls for audit in view.audits]

    def last_calls(self) -> list[CallView]:
        """The last attempt at every node, in the order in which they began."""
        last: dict[str, CallView] = {}
        for view in self.calls:
            last.pop(view.node, None)
            last[view.node] = view
        return list(last.values())

    def info(self, node: str) -> ev.NodeInfo:
        """What the graph says of a node."""
        return self._infos.get(node) or ev.NodeInfo(name=node, agent=node)

    def retries_of(self, node: str, attempt: int | None = None) -> list[ev.Retried]:
        """Why an attempt was given up; of a node whose attempts are not told apart, all."""
        return [r for r in self.retries if r.node == node and attempt in (None, r.attempt)]

    @property
    def done(self) -> list[CallFinished]:
        return [view.call for view in self.calls if view.call]

    @property
    def status(self) -> str:
        return self.finished.status if self.finished else "cut off"

    @property
    def bars(self) -> list[TimelineBar]:
        """Calls and tools over the run's time, in the order in which they began."""
        bars = [TimelineBar(view.title, view.parts, view) for view in self.calls if view.parts]
        for tool in self.tools:
            bars.append(TimelineBar(tool.node, [(tool.ready_at, tool.finished_at, "tool")], None))
        return sorted(bars, key=lambda bar: bar.parts[0][0])

    @cached_property
    def _infos(self) -> dict[str, ev.NodeInfo]:
        return {info.name: info for info in self.started.nodes}

    @cached_property
    def counts(self) -> list[str]:
        """The counts that are not zero all over the run: a dense run needs none but `computed`."""
        steps = [step for view in self.calls for step in view.steps]
        return [c for c in COUNTS if c == "computed" or any(getattr(s, c) for s in steps)]

    @cached_property
    def attempts(self) -> dict[str, int]:
        """The number of every node's last attempt."""
        return {view.node: view.attempt for view in self.last_calls()}
