"""Reading a trace back, whole or cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from kvcomm.errors import TraceError
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    CallInterrupted,
    Event,
    Failed,
    MessageSent,
    NodeStarted,
    PromptText,
    Retried,
    RunFinished,
    RunStarted,
    SegmentStep,
    StateRead,
    ToolFinished,
    parse_event,
)
from kvcomm.trace.record import TRACE_FILE

# In bytes; the longest lines hold a run's inputs.
LONGEST = 1 << 25
MOST = 1e100
OF_CALLS = (NodeStarted, SegmentStep, MessageSent, CallFinished, CallInterrupted, Audited)
COUNTS = ("computed", "prefix", "realigned", "ahead")


@dataclass
class CallView:
    """Everything a trace says of one attempt at a node.

    `call` is there once it has finished, `interrupted` if it was cancelled under way instead.
    """

    node: str
    attempt: int
    steps: list[SegmentStep] = field(default_factory=list)
    message: MessageSent | None = None
    call: CallFinished | None = None
    interrupted: CallInterrupted | None = None
    audits: list[Audited] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The node, and which attempt when it is not the first."""
        return self.node if self.attempt == 1 else f"{self.node} #{self.attempt}"

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt, as far as it is known."""
        return self.call.prompt_tokens if self.call else sum(step.tokens for step in self.steps)

    @property
    def output_tokens(self) -> int | None:
        """The tokens that were sampled; None where the trace does not say."""
        known = self.call or self.interrupted
        return known.output_tokens if known else None

    @property
    def moments(self) -> tuple[float, float, float, float, float] | None:
        """When it waited, worked ahead, prefilled and decoded: the begins of each, and the end.

        An interrupted call is in its last part when it ends. None for a call without times.
        """
        if call := self.call:
            begins = (call.opened_at, call.ahead_from, call.ready_at, call.first_token_at)
            return (*begins, call.finished_at)
        if cut := self.interrupted:
            end = cut.finished_at
            ready = end if cut.ready_at is None else cut.ready_at
            first = end if cut.first_token_at is None else cut.first_token_at
            return cut.opened_at, max(cut.opened_at, ready), ready, first, end
        return None

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
    started: RunStarted
    calls: list[CallView]
    tools: list[ToolFinished]
    finished: RunFinished | None
    state: list[StateRead]
    retries: list[Retried]
    errors: list[Failed]
    events: list[Event]
    skipped: int
    texts: dict[int, str] = field(default_factory=dict)

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

    @cached_property
    def senders(self) -> dict[str, list[str]]:
        """Whom every node hears."""
        return {info.name: info.senders for info in self.started.nodes}

    @cached_property
    def counts(self) -> list[str]:
        """The counts that are not zero all over the run: a dense run needs none but `computed`."""
        steps = [step for view in self.calls for step in view.steps]
        return [c for c in COUNTS if c == "computed" or any(getattr(s, c) for s in steps)]

    @cached_property
    def attempts(self) -> dict[str, int]:
        """The number of every node's last attempt."""
        return {view.node: view.attempt for view in self.last_calls()}


def find_run(name: str, root: Path = Path("runs")) -> Path:
    """The `trace.jsonl` of a run folder, of a name under `runs/`, or the file itself."""
    for path in (Path(name), Path(name) / TRACE_FILE, root / name / TRACE_FILE):
        if path.is_file():
            return path
    raise TraceError(
        f"no trace at {name!r}: give a run folder, its name under {root}/, or a {TRACE_FILE} "
        "(`kvcomm trace list` shows what is here)"
    )


def read_trace(path: Path) -> TraceRun:
    """Read a trace up to its last whole line; lines that are no event are counted in `skipped`.

    Raises `TraceError` when the file cannot be read or holds no run.
    """
    events: list[Event] = []
    skipped = 0
    with opened(path) as file:
        for line in whole_lines(file):
            if (event := read_event(line)) is not None:
                events.append(event)
            elif line.strip():
                skipped += 1
    if not events or not isinstance(events[0], RunStarted):
        raise no_run(path)
    return _assemble(path, events, skipped)


def no_run(path: Path) -> TraceError:
    """What is wrong with a file whose first event is not a run's."""
    return TraceError(f"{path} is not a trace: it does not begin with a `run` event")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises `TraceError` where that fails, now or later."""
    try:
        # A pipe or a device would never end.
        if path.exists() and not path.is_file():
            raise TraceError(f"cannot read {path}: it is not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from None


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than any event, its beginning."""
    while line := file.readline(LONGEST):
        yield line
        while len(line) == LONGEST and not line.endswith(b"\n"):
            line = file.readline(LONGEST)


def read_event(line: bytes) -> Event | None:
    """The event of a line; None for a line that is none, or has numbers that no run has."""
    try:
        event = parse_event(line.decode("utf-8", "replace").lstrip("\ufeff"))
    except ValidationError:
        return None
    return event if _measured(event) else None


def _measured(value: object) -> bool:
    """Whether all numbers in an event are of a size that can be reckoned with."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return -MOST < value < MOST
    if isinstance(value, BaseModel):
        return all(map(_measured, value.__dict__.values()))
    if isinstance(value, dict):
        return all(map(_measured, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_measured, value))
    return True


def _assemble(path: Path, events: list[Event], skipped: int) -> TraceRun:
    views: dict[tuple[str, int], CallView] = {}
    run = TraceRun(path, events[0], [], [], None, [], [], [], events, skipped)  # type: ignore[arg-type]
    tools = {info.name for info in run.started.nodes if info.tool}
    for event in events:
        if isinstance(event, NodeStarted) and event.node in tools:
            continue
        if isinstance(event, OF_CALLS):
            key = (event.node, event.attempt)
            view = views.setdefault(key, CallView(*key))
            if isinstance(event, SegmentStep):
                view.steps.append(event)
            elif isinstance(event, MessageSent):
                view.message = event
            elif isinstance(event, CallFinished):
                view.call = event
            elif isinstance(event, CallInterrupted):
                view.interrupted = event
            elif isinstance(event, Audited):
                view.audits.append(event)
        elif isinstance(event, PromptText):
            run.texts[event.id] = event.text
        elif isinstance(event, ToolFinished):
            run.tools.append(event)
        elif isinstance(event, RunFinished):
            run.finished = event
        elif isinstance(event, StateRead):
            run.state.append(event)
        elif isinstance(event, Retried):
            run.retries.append(event)
        elif isinstance(event, Failed):
            run.errors.append(event)
    run.calls = list(views.values())
    return run
