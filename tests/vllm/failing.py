"""The connector with a worker that fails: a step's orders raise while the file at FAILS is there.

The file's text says which half of a step: `begin` or `end`.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvcomm.vllm.connector import KvcommConnector
from kvcomm.vllm.orders import Orders
from kvcomm.vllm.worker import Worker
from tests.vllm.server import FAILS


class FailingConnector(KvcommConnector):
    """Loaded by `tests.vllm.live` in place of the connector itself."""

    def get_handshake_metadata(self) -> object:
        if self.worker is not None:
            self.worker.__class__ = FailingWorker
        return super().get_handshake_metadata()


class FailingWorker(Worker):
    def begin(self, orders: Orders) -> None:
        self._fail("begin")
        super().begin(orders)

    def end(self, orders: Orders) -> None:
        self._fail("end")
        super().end(orders)

    def _fail(self, half: str) -> None:
        path = Path(os.environ[FAILS])
        if path.exists() and path.read_text() == half:
            raise RuntimeError("as the test wants it")
