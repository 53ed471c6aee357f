"""Room for rows: which may be open at a time, and which give way.

A call that is ready waits only for others that are. Rows ahead and rows of audits are there while
nobody ready needs the room. So a run always goes on, even with room for a single row.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from kvcomm.engine.base import AHEAD, READY


@dataclass(eq=False)
class Ticket:
    """A row's claim on `nbytes`. `give_way` is called when somebody who is ready needs them."""

    nbytes: int
    priority: int
    give_way: Callable[[], None]
    order: int
    admitted: Future[None] = field(default_factory=Future)
    leaving: bool = False


class Room:
    """Bytes for rows. Thread-safe: sessions have event loops of their own."""

    def __init__(self, budget: Callable[[], int]) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._orders = itertools.count()
        self._held: list[Ticket] = []
        self._waiting: list[Ticket] = []

    @property
    def used(self) -> int:
        """Bytes of the rows that are open."""
        return sum(ticket.nbytes for ticket in self._held)

    async def enter(self, nbytes: int) -> Ticket:
        """Wait for room, as a call that is ready: rows ahead give way if they must.

        A row larger than the budget is admitted when it is alone.
        """
        ticket = Ticket(nbytes, READY, lambda: None, next(self._orders))
        with self._lock:
            self._waiting.append(ticket)
        self._admit()
        if ticket.admitted.done():
            return ticket
        try:
            await asyncio.wrap_future(ticket.admitted)
        except asyncio.CancelledError:
            self.leave(ticket)
            raise
        return ticket

    def try_enter(self, nbytes: int, priority: int, give_way: Callable[[], None]) -> Ticket | None:
        """Room at once, or None: for rows that can wait, or be done without."""
        with self._lock:
            if self._waiting or self.used + nbytes > self._budget():
                return None
            ticket = Ticket(nbytes, priority, give_way, next(self._orders))
            self._held.append(ticket)
            return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the room back. Safe to call twice."""
        with self._lock:
            for tickets in (self._held, self._waiting):
                if ticket in tickets:
                    tickets.remove(ticket)
        self._admit()

    def hurry(self, ticket: Ticket, priority: int) -> None:
        """The call has become ready, or less urgent."""
        ticket.priority = priority
        self._admit()

    def look(self) -> None:
        """The budget may have grown: admit who fits now."""
        self._admit()

    def _admit(self) -> None:
        """Admit who fits, in the order of waiting; ask rows ahead to give way to the first."""
        admitted: list[Ticket] = []
        asked: list[Ticket] = []
        with self._lock:
            while self._waiting:
                first = self._waiting[0]
                if self._held and self.used + first.nbytes > self._budget():
                    asked = self._ask(first)
                    break  # nobody overtakes: a large row would wait for ever
                self._held.append(self._waiting.pop(0))
                admitted.append(first)
        for ticket in admitted:
            if ticket.admitted.set_running_or_notify_cancel():
                ticket.admitted.set_result(None)
        for ticket in asked:
            ticket.give_way()

    def _ask(self, ready: Ticket) -> list[Ticket]:
        """Rows ahead that have to give way for `ready`: the latest first, no more than needed."""
        free = self._budget() - self.used + sum(t.nbytes for t in self._held if t.leaving)
        asked = []
        for ticket in sorted(self._held, key=lambda t: -t.order):
            if free >= ready.nbytes:
                break
            if ticket.priority >= AHEAD and not ticket.leaving:
                ticket.leaving = True
                free += ticket.nbytes
                asked.append(ticket)
        return asked
