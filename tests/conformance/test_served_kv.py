"""The engine over HTTP where the server has the connector keeps the contract."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.engine.base import Engine, Variant
from kvcomm.engine.load import load_served
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import ServerError
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.recipe import Realign, Recipe
from tests.conformance.engine import EngineContract, call, pieces, prompt
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


class Forgetful(FakeConnector):
    """Lets go of what it has published before anybody can use it."""

    async def publish(self, *args: Any, **options: Any) -> list[str]:
        new = await super().publish(*args, **options)
        self.names.clear()
        return new


async def test_a_prompt_that_was_not_filled_as_planned_is_not_compared(
    behind: LocalEngine,
) -> None:
    """It is computed then, and would look as good as dense."""
    with FakeServer(behind, Forgetful(behind)) as server, load_served(server.url) as engine:
        text = Segment("placeholder", "text", tuple(prompt(engine, 40, start=3)), index=1)
        segments = [*pieces(prompt(engine, 30), 30), text]
        made = replace(call(100), template=Template((segments[0].ids, ()), ("text",), "test"))
        with pytest.raises(ServerError, match="not measured: the server did not supply 39 tokens"):
            await engine.evaluate(made, segments, [Variant(Realign(Recipe("rotate")))])
