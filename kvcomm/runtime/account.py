"""Keeping the books of one call: where every prompt token came from, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvcomm.engine.base import Arrived, Extended
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Way


@dataclass
class Entry:
    """One segment of the prompt. `arrivals` are (clock, tokens, computed) of every piece."""

    kind: str
    name: str
    ids: list[int] = field(default_factory=list)
    computed: int = 0
    prefix: int = 0
    realigned: int = 0
    ways: set[Way] = field(default_factory=set)
    reason: str = ""
    positions: tuple[int, ...] = ()
    corrected: bool = False
    arrivals: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How long the segment is."""
        return len(self.ids)

    def add(self, ids: Sequence[int], extended: Extended, clock: float) -> None:
        """Count one piece of the segment."""
        self.ids += ids
        self.computed += extended.computed
        self.prefix += extended.prefix
        self.realigned += extended.realigned
        self.ways.add(extended.way)
        self.positions = extended.positions
        self.corrected = extended.corrected
        self.reason = extended.reason
        self.arrivals.append((clock, len(ids), extended.computed))

    def remove(self, tokens: int) -> int:
        """Take back the last `tokens`; returns how many of them were computed for nothing.

        A prefix comes first in its piece, so the end of a piece is what was computed.
        """
        wasted, left = 0, tokens
        while left:
            clock, count, computed = self.arrivals.pop()
            taken = min(count, left)
            lost = min(computed, taken)
            left, wasted = left - taken, wasted + lost
            if count > taken:
                self.arrivals.append((clock, count - taken, computed - lost))
        del self.ids[len(self.ids) - tokens :]
        self.computed -= wasted
        self.prefix -= tokens - wasted
        return wasted

    def restate(self, arrivals: list[tuple[float, int, int]]) -> None:
        """How the segment really came, as is known by now."""
        self.arrivals = arrivals
        self.computed = sum(computed for _, _, computed in arrivals)
        self.prefix = self.tokens - self.computed
        if self.prefix:
            self.ways = {"compute" if self.computed else "prefix"}
            part = "in part " if self.computed else ""
            self.reason = f"{part}in the server's prefix cache"

    @property
    def way(self) -> Way:
        """The way of the segment as a whole."""
        if "realign" in self.ways:
            return "realign"
        return "prefix" if self.ways == {"prefix"} else "compute"

    def fields(self, ready: float) -> dict[str, Any]:
        """The fields of a `SegmentStep`; `ready` is the clock when the last input was complete."""
        return {
            "segment": self.kind,
            "name": self.name,
            "tokens": self.tokens,
            "way": self.way,
            "computed": self.computed,
            "prefix": self.prefix,
            "realigned": self.realigned,
            "ahead": sum(count for clock, count, _ in self.arrivals if clock <= ready),
            "reason": self.reason,
            "positions": ranges(self.positions),
            "corrected": self.corrected,
        }


class Account:
    """The entries of one prompt, in order; `redone` counts tokens computed for nothing."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.redone = 0

    def entry(self, index: int, kind: str, name: str) -> Entry:
        """The entry of the slot at `index`."""
        return self.entries.setdefault(index, Entry(kind, name))

    def add(
        self,
        indices: Sequence[int],
        segments: Sequence[Segment],
        extended: Sequence[Extended],
        clock: float,
    ) -> None:
        """Count pieces that entered the row together."""
        for index, segment, done in zip(indices, segments, extended, strict=True):
            self.entry(index, segment.kind, segment.name).add(segment.rest, done, clock)

    def restate(self, arrived: Sequence[Arrived]) -> None:
        """Count the prompt once more, as is known by now of its stretches from left to right."""
        stretches = [(stretch.at, stretch.tokens, stretch.prefix) for stretch in arrived]
        self.redone = sum(stretch.again for stretch in arrived)
        for _, entry in sorted(self.entries.items()):
            left, arrivals = entry.tokens, []
            while left:
                clock, tokens, prefix = stretches.pop(0)
                taken = min(tokens, left)
                found = min(prefix, taken)
                arrivals.append((clock, taken, taken - found))
                left -= taken
                if tokens > taken:
                    stretches.insert(0, (clock, tokens - taken, prefix - found))
            entry.restate(arrivals)

    def drop(self) -> None:
        """The row is gone: what was computed in it was for nothing."""
        self.redone += sum(entry.computed for entry in self.entries.values())
        self.entries.clear()

    @property
    def tokens(self) -> int:
        """Prompt tokens so far."""
        return sum(entry.tokens for entry in self.entries.values())


def ranges(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending positions as `[start, end)` ranges."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return found
