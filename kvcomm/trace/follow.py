"""Events of a trace as they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kvcomm.trace.events import Event, parse_event

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
            for line in lines:
                try:
                    event = parse_event(line.decode("utf-8", "replace"))
                except ValidationError:
                    continue
                yield event
                if event.kind == "end":
                    return
