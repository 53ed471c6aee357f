"""The engine over HTTP where the server has the connector keeps the contract."""

from collections.abc import Callable, Iterator

import pytest

from kvcomm.engine.base import Engine
from kvcomm.engine.load import load_served
from kvcomm.engine.local import LocalEngine
from tests.conformance.engine import EngineContract
from tests.conformance.fake_connector import FakeConnector
from tests.conformance.fake_server import FakeServer


@pytest.fixture(scope="module")
def behind(engine_of: Callable[..., LocalEngine]) -> LocalEngine:
    return engine_of("random:llama-tiny", "float64")


@pytest.fixture(scope="module")
def shared(behind: LocalEngine) -> Iterator[Engine]:
    connector = FakeConnector(behind)
    with FakeServer(behind, connector, pause_s=0.002) as server, load_served(server.url) as engine:
        assert engine.capabilities.reuse
        yield engine


class TestServedKV(EngineContract):
    ahead = 1  # a request takes a while, and many tokens

    @pytest.fixture
    def engine(self, shared: Engine) -> Engine:
        return shared
