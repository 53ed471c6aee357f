"""How many requests are under way: real ones wait in turn, those ahead take what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial


class Gate:
    """At most `limit` requests at once, and half of that ahead of their inputs.

    All methods belong to one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._most_ahead = max(limit // 2, 1)
        self._urgent: set[object] = set()  # those without a first token yet
        self.ahead = 0

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place; what comes with it is to be called at the first token."""
        request = object()
        self._urgent.add(request)
        try:
            async with self._free:
                yield partial(self._urgent.discard, request)
        finally:
            self._urgent.discard(request)

    @asynccontextmanager
    async def spare(self) -> AsyncIterator[bool]:
        """A place that nobody waits for, while nobody waits for a first token; else False."""
        if self._urgent or self._free.locked() or self.ahead >= self._most_ahead:
            yield False
            return
        self.ahead += 1
        try:
            async with self._free:
                yield True
        finally:
            self.ahead -= 1
