"""Events of a trace as they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kvcomm.trace.events import Event
from kvcomm.trace.read import LONGEST, read_event

WAIT_S = 0.1


def follow(path: Path, *, wait_s: float = WAIT_S) -> Iterator[Event]:
    """The events of the file from its beginning, and those that come, up to the end of the run.

    A line counts when it is whole. Lines that are no event are passed over.
    """
    with path.open("rb") as file:
        pending = b""
        while True:
            data = file.read(1 << 16)
            if not data:
                time.sleep(wait_s)
                continue
            *lines, pending = (pending + data).split(b"\n")
            # What is longer than any event is none; its rest is none either.
            pending = pending[:LONGEST]
            for line in lines:
                if (event := read_event(line)) is None:
                    continue
                yield event
                if event.kind == "end":
                    return
