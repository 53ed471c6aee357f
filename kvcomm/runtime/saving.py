"""Writing what was learned behind the answers: at most once a minute, and when all is over."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kvcomm.engine.base import Engine
from kvcomm.errors import StateError

log = logging.getLogger(__name__)

# What was learned is written so long after the first of it: together with what comes meanwhile.
SAVE_S = 60.0


class Saver:
    """Calls `save`, on a thread of its own, some time after `changed` was called.

    It is called at once when `engine` is closed, and when the program ends. One that fails is
    logged, and tried again when something else has changed: nothing that was learned is forgotten
    meanwhile. `failed` says why, until it has succeeded.
    """

    def __init__(self, save: Callable[[], Coroutine[Any, Any, None]], engine: Engine) -> None:
        self.failed = ""
        self._save = save
        self._engine = engine
        self._pending = False
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def changed(self) -> None:
        """There is something to write."""
        with self._lock:
            self._await_the_end()
            if self._timer is None:
                self._timer = threading.Timer(SAVE_S, self.flush_or_log)
                self._timer.name, self._timer.daemon = "kvcomm-saver", True
                self._timer.start()

    def flush(self) -> None:
        """Write what there is to write, now. Raises `StateError`."""
        with self._writing:
            with self._lock:
                if not self._pending:
                    return
                self._pending = False
                atexit.unregister(self.flush_or_log)
                self._engine.before_close.discard(self.flush_or_log)
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            try:
                _finish(self._save)
            except BaseException as error:
                with self._lock:
                    self._await_the_end()
                self.failed = str(error) or type(error).__name__
                if isinstance(error, StateError) or not isinstance(error, Exception):
                    raise
                raise StateError(f"what was learned is not saved: {self.failed}") from error
            self.failed = ""

    def _await_the_end(self) -> None:
        """Be called when the engine is closed and when the program ends; kept alive until then."""
        if not self._pending:
            self._pending = True
            self._engine.before_close.add(self.flush_or_log)
            # Now, not on import: what was registered last is called first, and others (Ray) close
            # what the engine needs.
            atexit.register(self.flush_or_log)

    def flush_or_log(self) -> None:
        """Write what there is to write; what went wrong is logged."""
        told = self.failed
        try:
            self.flush()
        except StateError as error:
            if self.failed != told:  # the disk is still full: once is enough
                log.warning("%s", error)


def _finish(save: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end, also where an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(save())
        return
    with ThreadPoolExecutor(1, "kvcomm-saver") as pool:
        pool.submit(asyncio.run, save()).result()
