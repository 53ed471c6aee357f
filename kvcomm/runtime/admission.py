"""When a run may begin, and when it has to be over."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

from kvcomm.errors import RunTimeout, UsageError


class Deadline:
    """The time limit of one run, `seconds` from now; None is none. Belongs to one event loop.

    `spent_s` of them were spent elsewhere.
    """

    def __init__(self, seconds: float | None, spent_s: float = 0.0) -> None:
        if seconds is not None and not seconds > 0:
            raise UsageError(f"timeout_s {seconds!r} must be positive, or None for no limit")
        self.seconds = seconds
        self._began = asyncio.get_running_loop().time() - spent_s

    @property
    def spent_s(self) -> float:
        """Seconds since it began."""
        return asyncio.get_running_loop().time() - self._began

    @asynccontextmanager
    async def within(self, doing: str = "") -> AsyncIterator[None]:
        """Raise `RunTimeout` as soon as the time is over; what is inside is cancelled."""
        left = None if self.seconds is None else self.seconds - self.spent_s
        try:
            async with asyncio.timeout(left) as timeout:
                yield
        except TimeoutError:
            if timeout.expired() and self.seconds is not None:
                raise RunTimeout(self.seconds, doing) from None
            raise


class Admission:
    """At most `most` runs at a time, over all event loops; None is no limit.

    The others wait, and begin in the order in which they came.
    """

    def __init__(self, most: int | None) -> None:
        if most is not None and most < 1:
            raise UsageError(f"max_runs {most!r} must be at least 1, or None for no limit")
        self._most = self._free = most
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def enter(self, deadline: Deadline) -> None:
        """Wait for a place, which `leave` gives back. Raises `RunTimeout` at the deadline."""
        with self._lock:
            if self._free is None:
                return
            if self._free > 0:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            async with deadline.within(f"waiting for its turn: max_runs is {self._most}"):
                await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():  # it was given a place at the same moment
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back: to the run that has waited longest, if any does."""
        with self._lock:
            if self._free is None:
                return
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    break
            else:
                self._free += 1
                return
        turn.set_result(None)
