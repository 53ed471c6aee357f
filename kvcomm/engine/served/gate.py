"""How many requests are under way: real ones wait in turn, those ahead take what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Place:
    """A real request's place; `begun` says that its first token has come."""

    begun = False


class Gate:
    """At most `limit` requests at once, and half of that ahead of their inputs.

    All methods belong to one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._most_ahead = max(limit // 2, 1)
        self._places: set[Place] = set()
        self.ahead = 0

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Place]:
        """Wait for a place."""
        place = Place()
        self._places.add(place)
        try:
            async with self._free:
                yield place
        finally:
            self._places.discard(place)

    @asynccontextmanager
    async def spare(self) -> AsyncIterator[bool]:
        """A place that nobody waits for, while nobody waits for a first token; else False."""
        urgent = not all(place.begun for place in self._places)
        if urgent or self._free.locked() or self.ahead >= self._most_ahead:
            yield False
            return
        self.ahead += 1
        try:
            async with self._free:
                yield True
        finally:
            self.ahead -= 1
