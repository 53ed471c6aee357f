"""A replica's memory: which rows are open, what the prefix cache keeps, and the most of it all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from kvcomm.plan.replica import Row

# As in the engine; a test compares them. Shares of all memory for KV, and the shortest prefix.
STORE, OFFSETS, PREFIX, WHOLE = 1 / 8, 1 / 4, 1 / 20, 1 / 10
BLOCK = 16
AHEAD = 1


@dataclass(eq=False)
class Claim:
    """A row's room. `admitted` says that it has it, `give_way` is called when it has to go."""

    row: Row
    nbytes: float
    admitted: simpy.Event
    give_way: Callable[[], None] | None = None


class Memory:
    """`limit` bytes for KV, `slot` bytes a token. Rows come first, in the order of their claims.

    `shared` and `across` are the tokens that two nodes' prompts have in common, in one graph and
    in two. `peak` is the most that was in use, `fixed` (offset models) with it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        limit: float,
        slot: int,
        shared: Mapping[tuple[str, str], int],
        across: Mapping[tuple[str, str], int],
        fixed: float = 0.0,
    ) -> None:
        self._env = env
        self.limit = limit
        self._slot = slot
        self._shared = shared
        self._across = across
        self._fixed = min(fixed, limit * OFFSETS)
        self._base = 0.0
        self._held: list[Claim] = []
        self._waiting: list[Claim] = []
        self._prefixes: OrderedDict[Row, int] = OrderedDict()
        self._openings: dict[str, int] = {}
        self.peak = 0.0

    @property
    def rows(self) -> float:
        """Bytes of the rows that are open."""
        return sum(claim.nbytes for claim in self._held)

    def enter(self, row: Row) -> Claim:
        """A claim of a row that is ready: rows ahead give way to it; alone, any row is let in."""
        claim = Claim(row, row.capacity * self._slot, self._env.event())
        self._waiting.append(claim)
        self._admit()
        return claim

    def spare(self, row: Row, give_way: Callable[[], None]) -> Claim | None:
        """Room at once for a row that works ahead, or None."""
        nbytes = row.capacity * self._slot
        if self._waiting or self.rows + nbytes > self.limit:
            return None
        claim = Claim(row, nbytes, self._env.event().succeed(), give_way)
        self._held.append(claim)
        self._measure()
        return claim

    def leave(self, claim: Claim) -> None:
        """Give the room back."""
        for claims in (self._held, self._waiting):
            if claim in claims:
                claims.remove(claim)
        self._trim()
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if self._held and self.rows + first.nbytes > self.limit:
                self._ask(first)
                break  # nobody overtakes
            self._held.append(self._waiting.pop(0))
            first.admitted.succeed()
        self._measure()

    def _ask(self, ready: Claim) -> None:
        """The latest rows ahead give way, no more than needed."""
        free = self.limit - self.rows
        free += sum(c.nbytes for c in self._held if c.row.priority == AHEAD and not c.give_way)
        for claim in reversed(self._held):
            if free >= ready.nbytes:
                break
            if claim.row.priority == AHEAD and claim.give_way is not None:
                give_way, claim.give_way = claim.give_way, None
                free += claim.nbytes
                give_way()

    def keep_base(self, tokens: int) -> None:
        """Base KV of so many tokens is stored, as far as its share goes."""
        self._base = min(self._base + tokens * self._slot, self.limit * STORE)
        self._measure()

    def settle(self, row: Row) -> None:
        """What is in the row is final, and the prefix cache knows it."""
        self._prefixes[row] = row.length
        self._prefixes.move_to_end(row)
        self._trim()

    def _trim(self) -> None:
        """Rows that have ended leave their openings, the oldest first."""
        left = self.limit - self.rows - self._base - self._fixed
        room = max(min(self.limit * PREFIX, left), 0)
        ended = self._ended()
        while sum(row.capacity for row in ended) * self._slot > room * WHOLE:
            gone = ended.pop(0)
            del self._prefixes[gone]
            self._openings.pop(gone.key[1], None)
            self._openings[gone.key[1]] = gone.opening // BLOCK * BLOCK
        while sum(self._openings.values()) * self._slot > room:
            del self._openings[next(iter(self._openings))]
        self._measure()

    def _ended(self) -> list[Row]:
        """Rows that the prefix cache holds and nobody else."""
        open_rows = {claim.row for claim in self._held}
        return [row for row in self._prefixes if row not in open_rows]

    def held(self, row: Row) -> int:
        """Leading tokens of the row's prompt that the prefix cache holds."""
        node = row.key[1]
        found = 0
        for other, length in self._prefixes.items():
            if other is not row:
                found = max(found, min(length, self.common(row, other)))
        for name, length in self._openings.items():
            found = max(found, min(length, self._across.get((node, name), 0)))
        return found if found >= BLOCK else 0

    def common(self, one: Row, other: Row) -> int:
        """The leading tokens that the prompts of two rows have in common."""
        table = self._shared if one.key[0] == other.key[0] else self._across
        return table.get((one.key[1], other.key[1]), 0)

    def _measure(self) -> None:
        kept = sum(row.capacity for row in self._ended()) + sum(self._openings.values())
        # A learning mode's caches shrink for rows.
        rest = min(kept * self._slot + self._base + self._fixed, max(self.limit - self.rows, 0))
        self.peak = max(self.peak, self.rows + rest)
