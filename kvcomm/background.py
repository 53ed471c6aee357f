"""An event loop on a thread of its own, for synchronous callers and notebooks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
# How long it may take until a waiting caller notices Ctrl-C.
NOTICE_S = 0.2
CLEAN_UP_S = 30


class Once:
    """Lets one of all who want the same thing make it; the others wait until that is over.

    They may be on several event loops. Whoever has waited looks whether it is there, and otherwise
    asks again.
    """

    def __init__(self) -> None:
        self._making: dict[object, Future[None]] = {}
        self._lock = threading.Lock()

    @asynccontextmanager
    async def turn(self, key: object) -> AsyncIterator[bool]:
        """Whether it is ours to make; if not, somebody else has just made it, or failed to."""
        with self._lock:
            other = self._making.get(key)
            if other is None:
                mine = self._making[key] = Future()
        if other is not None:
            await asyncio.wait([asyncio.wrap_future(other)])
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                del self._making[key]
            mine.set_result(None)


class Background:
    """Runs coroutines on one background loop, also while another loop runs in this thread."""

    def __init__(self, name: str = "kvcomm-session") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the coroutine; Ctrl-C cancels it, waits for its clean-up, and is raised."""
        future = self.start(coroutine)
        try:
            # A signal that comes just before a wait without end would be noticed at its end.
            while not wait([future], timeout=NOTICE_S).done:
                pass
            return future.result()
        except KeyboardInterrupt:
            self.cancel(coroutine)
            raise

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start the coroutine and do not wait for it. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def closed(self) -> bool:
        """Whether the loop is gone."""
        return self._loop.is_closed()

    def cancel(self, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
        """Cancel a coroutine that was started, or all, and wait for the clean-up."""

        def cancelled(me: asyncio.Task[Any] | None) -> list[asyncio.Task[Any]]:
            others = asyncio.all_tasks(self._loop) - {me}
            tasks = [task for task in others if coroutine in (None, task.get_coro())]
            for task in tasks:
                task.cancel()
            return tasks

        async def cancel() -> None:
            await asyncio.gather(*cancelled(asyncio.current_task()), return_exceptions=True)

        if threading.current_thread() is self._thread:
            # A stream that nobody holds any more may be collected here, which cannot wait.
            cancelled(None)
        elif not self.closed:
            over = asyncio.run_coroutine_threadsafe(cancel(), self._loop)
            if not wait([over], timeout=CLEAN_UP_S).done:
                log.warning("what was cancelled is not over after %d s: left behind", CLEAN_UP_S)

    def close(self) -> None:
        """Cancel what runs and stop the thread."""
        if self._loop.is_closed():
            return
        self.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
