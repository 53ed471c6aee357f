"""Reading a trace: whole or cut off, its two ends alone, or while it is written."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from kvcomm.errors import TraceError
from kvcomm.trace.events import Audited, Event, RunFinished, RunStarted, parse_event
from kvcomm.trace.record import TRACE_FILE
from kvcomm.trace.run import TraceRun

# In bytes; the longest lines hold a run's inputs.
LONGEST = 1 << 25
MOST = 1e100
# The last line is looked for in so many bytes, and where it is longer, in more.
WINDOW = 1 << 14
# A line tells its kind at its beginning; behind it there may be texts of any kind.
CALL = re.compile(rb'"kind" ?: ?"call"')
BEGINNING = 200
WAIT_S = 0.1


@dataclass(frozen=True)
class Ends:
    """A run's first event, its last if it ended by itself, and how many calls finished in it."""

    started: RunStarted
    finished: RunFinished | None
    calls: int


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
    with _opened(path) as file:
        started = _first(path, file)
        file.seek(0)
        for line in _whole_lines(file):
            if (event := read_event(line)) is not None:
                events.append(event)
            elif line.strip():
                skipped += 1
    return TraceRun(path, started, events, skipped)


def read_ends(path: Path) -> Ends:
    """The ends of a trace. Raises `TraceError` when it cannot be read or holds no run.

    The calls of a run that was cut off, or that an older version recorded, are counted: that reads
    the file, but parses none of it.
    """
    with _opened(path) as file:
        started = _first(path, file)
        rest = file.tell()
        last = _last(file)
        finished = last if isinstance(last, RunFinished) else None
        if finished is not None and finished.calls is not None:
            return Ends(started, finished, finished.calls)
        file.seek(rest)
        calls = sum(1 for line in _whole_lines(file) if CALL.search(line, 0, BEGINNING))
        return Ends(started, finished, calls)


def read_start(path: Path) -> RunStarted:
    """The first event alone. Raises `TraceError` when there is none, or it is no run's."""
    with _opened(path) as file:
        return _first(path, file)


def _first(path: Path, file: BinaryIO) -> RunStarted:
    """The first event; lines that are no event are passed over."""
    for line in _whole_lines(file):
        if (event := read_event(line)) is not None:
            if isinstance(event, RunStarted):
                return event
            break
    raise TraceError(f"{path} is not a trace: it does not begin with a `run` event")


def _last(file: BinaryIO) -> Event | None:
    """The last event but for audits, which may stand behind the end; found backwards."""
    size = file.seek(0, 2)
    window = WINDOW
    while True:
        begin = max(size - window, 0)
        file.seek(begin)
        # Of the first line in the window only the end may be there: alone, it is no event.
        for line in reversed(file.read(size - begin).split(b"\n")):
            event = read_event(line)
            if event is not None and not isinstance(event, Audited):
                return event
        if begin == 0 or window >= LONGEST:
            return None
        window *= 8


def follow(path: Path, *, wait_s: float = WAIT_S) -> Iterator[Event]:
    """The events of the file from its beginning, and those that come, up to the end of the run."""
    with path.open("rb") as file:
        pending = b""
        while True:
            data = file.read(1 << 16)
            if not data:
                if path.stat().st_size < file.tell():  # the run began again
                    file.seek(0)
                    pending = b""
                time.sleep(wait_s)
                continue
            *lines, pending = (pending + data).split(b"\n")
            # What is longer than any event is none; its rest is none either.
            pending = pending[:LONGEST]
            for line in lines:
                if (event := read_event(line)) is not None:
                    yield event
                    if event.kind == "end":
                        return


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises `TraceError` where that fails, now or later."""
    try:
        # A pipe or a device would never end.
        if path.exists() and not path.is_file():
            raise TraceError(f"cannot read {path}: it is not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from None


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
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


def _measured(value: Any) -> bool:
    """Whether all numbers in an event are of a size that can be reckoned with."""
    if isinstance(value, int | float):
        return -MOST < value < MOST if isinstance(value, float) else -(2**63) <= value < 2**63
    if isinstance(value, BaseModel):
        value = value.__dict__
    if isinstance(value, dict):
        value = value.values()
    return isinstance(value, str) or not isinstance(value, Iterable) or all(map(_measured, value))
