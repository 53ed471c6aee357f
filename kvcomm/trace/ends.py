"""The two ends of a trace: how a run began and ended, without reading what is between."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvcomm.trace.events import Event, RunFinished, RunStarted
from kvcomm.trace.read import LONGEST, no_run, opened, read_event, whole_lines

# The last line is looked for in so many bytes, and where it is longer, in more.
WINDOW = 1 << 14
# A line tells its kind at its beginning; behind it there may be texts of any kind.
CALL = re.compile(rb'"kind" ?: ?"call"')
BEGINNING = 200


@dataclass(frozen=True)
class Ends:
    """A run's first event, its last if it ended by itself, and how many calls finished in it."""

    started: RunStarted
    finished: RunFinished | None
    calls: int


def read_ends(path: Path) -> Ends:
    """The ends of a trace. Raises `TraceError` when it cannot be read or holds no run.

    The calls of a run that was cut off, or that an older version recorded, are counted: that reads
    the file, but parses none of it.
    """
    with opened(path) as file:
        started = _first(path, file)
        rest = file.tell()
        last = _last(file)
        finished = last if isinstance(last, RunFinished) else None
        if finished is not None and finished.calls is not None:
            return Ends(started, finished, finished.calls)
        file.seek(rest)
        calls = sum(1 for line in whole_lines(file) if CALL.search(line, 0, BEGINNING))
        return Ends(started, finished, calls)


def read_start(path: Path) -> RunStarted:
    """The first event alone. Raises `TraceError` when there is none, or it is no run's."""
    with opened(path) as file:
        return _first(path, file)


def _first(path: Path, file: BinaryIO) -> RunStarted:
    """The first event; lines that are no event are passed over."""
    for line in whole_lines(file):
        if (event := read_event(line)) is not None:
            if isinstance(event, RunStarted):
                return event
            break
    raise no_run(path)


def _last(file: BinaryIO) -> Event | None:
    """The last event, found from the end of the file backwards."""
    size = file.seek(0, 2)
    window = WINDOW
    while True:
        begin = max(size - window, 0)
        file.seek(begin)
        # Of the first line in the window only the end may be there: alone, it is no event.
        for line in reversed(file.read(size - begin).split(b"\n")):
            if (event := read_event(line)) is not None:
                return event
        if begin == 0 or window >= LONGEST:
            return None
        window *= 8
