"""Which sequences may have memory. Belongs to the engine's thread; pure but for the budget.

A call that is ready waits only for others that are. Calls ahead and in the background are there
while nobody ready needs their room. So a run always goes on, even with room for one sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvcomm.engine.base import AHEAD, BACKGROUND


class Reserving(Protocol):
    """A sequence: `reserved` bytes are its own."""

    reserved: int
    order: int

    @property
    def priority(self) -> int: ...


class Reservations:
    """Reserves bytes of `budget` for sequences. A sequence larger than that is let in alone."""

    def __init__(self, budget: Callable[[], int]) -> None:
        self._budget = budget
        self._count = 0
        self.held: list[Reserving] = []
        self.waiting: list[tuple[Reserving, int]] = []

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return sum(seq.reserved for seq in self.held)

    @property
    def calls(self) -> bool:
        """Whether a sequence is open that is not the background's."""
        return any(seq.priority < BACKGROUND for seq in self.held)

    def try_reserve(self, seq: Reserving, nbytes: int) -> bool:
        """Reserve at once, or not at all; those who wait come first."""
        if self.waiting or self.used + nbytes > self._budget():
            return False
        self._hold(seq, nbytes)
        return True

    def reserve(self, seq: Reserving, nbytes: int) -> None:
        """Get in line; `admit` says when it is in."""
        self.waiting.append((seq, nbytes))

    def grow(self, seq: Reserving, nbytes: int) -> None:
        """A sequence has become larger than was known."""
        seq.reserved = max(seq.reserved, nbytes)

    def release(self, seq: Reserving) -> None:
        """Give the bytes back, or the place in line. Safe to call twice."""
        self.held = [other for other in self.held if other is not seq]
        self.waiting = [(other, nbytes) for other, nbytes in self.waiting if other is not seq]
        seq.reserved = 0

    def admit(self) -> list[Reserving]:
        """Let in who fits, in the order of the line: nobody overtakes, or a large sequence would
        wait for ever.
        """
        admitted = []
        while self.waiting:
            seq, nbytes = self.waiting[0]
            if self.held and self.used + nbytes > self._budget():
                break
            del self.waiting[0]
            self._hold(seq, nbytes)
            admitted.append(seq)
        return admitted

    def victims(self) -> list[Reserving]:
        """Whom to preempt for the first in line: the latest first, no more than needed."""
        if not self.waiting:
            return []
        _, nbytes = self.waiting[0]
        free, found = self._budget() - self.used, []
        for seq in sorted(self.held, key=lambda seq: -seq.order):
            if free >= nbytes:
                break
            if seq.priority >= AHEAD:
                free += seq.reserved
                found.append(seq)
        return found

    def _hold(self, seq: Reserving, nbytes: int) -> None:
        self._count += 1
        seq.reserved, seq.order = nbytes, self._count
        self.held.append(seq)
