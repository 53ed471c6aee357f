"""Rows: realigned prompts that grow request by request, and what keeps them between two requests.

The blocks of a finished request are anybody's. So a row's full blocks are pinned (their count of
users is one higher), and the last, partial one, which vLLM's prefix cache does not know, is kept as
a copy. Pins take at most half of the blocks that would be free without them; a row beyond that is
kept as a copy from its last pin on. At any time pins cover `[0, pinned)` and copies the rest. When
blocks are short, what was pinned is copied, too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcomm.vllm.names import Names
from kvcomm.vllm.orders import Copy, Fill, Save


@dataclass(eq=False)
class Row:
    """A row of which the server has `tokens`; `live` is the request that is under way for it."""

    name: str
    seen: float
    tokens: array[int] = field(default_factory=lambda: array("I"))
    live: str = ""
    pins: tuple[int, ...] = ()
    copies: list[Copy] = field(default_factory=list)

    def fills(self, start: int, limit: int) -> list[Fill]:
        """What copies have of it directly behind `start`, up to `limit`."""
        found: list[Fill] = []
        for copy in self.copies:
            stop = min(copy.stop, limit)
            if copy.start <= start < stop:
                found.append(Fill(start, stop, copy.entry, start - copy.start))
                start = stop
        return found


class Rows:
    """All rows. Those that nobody asked for during `ttl` seconds end.

    `pins` and `unpins` are block ids that the caller is to give one more user, or one less, in this
    order; `stale` are those whose content nobody wants any more. `held` get one less when the
    coming step's orders are made, which read them.
    """

    def __init__(self, names: Names, block: int, ttl: float, clock: Callable[[], float]) -> None:
        self._names = names
        self._block = block
        self._ttl = ttl
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self.pinned = 0
        self.pins: list[int] = []
        self.unpins: list[int] = []
        self.stale: list[int] = []
        self.held: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, name: str) -> Row:
        """The row of this name; a new one if there is none."""
        return self._rows.setdefault(name, Row(name, self._clock()))

    def keep(
        self, row: Row, tokens: array[int], blocks: Sequence[int], free: int
    ) -> list[Copy] | None:
        """Keep a row that is now `tokens` long, in `blocks`; `free` blocks are nobody's.

        Returns the slots to copy; None where there is no room, and the row is over then, or was.
        """
        if self._rows.get(row.name) is not row:
            return None
        full = len(tokens) // self._block
        fresh = tuple(blocks[:full])
        more = len(set(fresh).difference(row.pins)) - len(set(row.pins).difference(fresh))
        if self.pinned + more <= (free + self.pinned) // 2:
            old, start = row.copies, full * self._block
            row.copies = []
            self._pin(row, fresh)
            for copy in old:
                self._names.free(copy.entry, copy.stop - copy.start)
        else:
            start = max((copy.stop for copy in row.copies), default=len(row.pins) * self._block)
        row.tokens, row.seen = tokens, self._clock()
        if start >= len(tokens):
            return []
        entry = self._names.reserve(len(tokens) - start)
        if entry is None:
            self.end(row.name)
            return None
        row.copies.append(Copy(entry, start, len(tokens)))
        return row.copies[-1:]

    def _pin(self, row: Row, blocks: tuple[int, ...]) -> None:
        before, after = set(row.pins), set(blocks)
        self.pins += [block for block in blocks if block not in before]
        self.unpins += [block for block in row.pins if block not in after]
        self.pinned += len(blocks) - len(row.pins)
        row.pins = blocks

    def give_way(self) -> list[Save]:
        """Copy what is pinned of idle rows, and let go of it. Those without room for that end."""
        saves = []
        for row in list(self._rows.values()):
            if row.live or not row.pins:
                continue
            tokens = len(row.pins) * self._block
            entry = self._names.reserve(tokens)
            if entry is None:
                self.end(row.name)
                continue
            row.copies.insert(0, Copy(entry, 0, tokens))
            saves.append(Save(row.pins, (row.copies[0],)))
            self.held += row.pins
            self.pinned -= len(row.pins)
            row.pins = ()
        return saves

    def end(self, name: str) -> None:
        """A row is over. One that is not there is no error."""
        row = self._rows.pop(name, None)
        if row is None:
            return
        self.stale += row.pins
        self._pin(row, ())
        for copy in row.copies:
            self._names.free(copy.entry, copy.stop - copy.start)
        row.copies = []

    def expire(self) -> None:
        """End the rows whose clients are gone."""
        now = self._clock()
        for row in list(self._rows.values()):
            if not row.live and now - row.seen > self._ttl:
                self.end(row.name)

    def clear(self) -> None:
        """End all of them."""
        for name in list(self._rows):
            self.end(name)
