"""The contract on a real server at KVCOMM_BASE_URL that serves the embedded model in float32.

Not collected by itself: `make serve-test` starts vLLM and names this file.
"""

import os
from collections.abc import Iterator

import pytest

from kvcomm.engine.base import Engine
from kvcomm.engine.load import load_served
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.served.kv_engine import ServedKVEngine
from tests.conformance.engine import TASK, TEXT, EngineContract


@pytest.fixture(scope="module")
def served() -> Iterator[Engine]:
    with load_served(os.environ["KVCOMM_BASE_URL"], "smollm2-135m") as engine:
        yield engine


class TestRealServer(EngineContract):
    tokens = 24
    ahead = 1
    block = 32
    task = TASK + TEXT * 2  # long enough to be worth a request ahead

    @pytest.fixture
    def engine(self, served: Engine) -> Engine:
        return served

    @pytest.fixture
    def reference(self, smol: LocalEngine) -> LocalEngine:
        return smol

    def test_it_can_do_everything(self, engine: Engine) -> None:
        assert engine.capabilities.exact
        assert engine.capabilities.reuse == isinstance(engine, ServedKVEngine)
