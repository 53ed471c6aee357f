"""An event loop on a thread of its own, for synchronous callers and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
# How long it may take until a waiting caller notices Ctrl-C.
NOTICE_S = 0.2


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
            self.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start the coroutine and do not wait for it. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def closed(self) -> bool:
        """Whether the loop is gone."""
        return self._loop.is_closed()

    def cancel(self) -> None:
        """Cancel what runs, and wait for its clean-up."""

        async def cancel() -> None:
            me = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not me]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(timeout=30)

    def close(self) -> None:
        """Cancel what runs and stop the thread."""
        if self._loop.is_closed():
            return
        self.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
