"""Several servers: each runs whole graphs, and a lost one's runs begin again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from kvcomm.engine.load import load_served
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.served.pool import ServerPool
from kvcomm.errors import ModelError
from kvcomm.graphs import chain
from kvcomm.reuse.auto import LEVELS
from tests.conformance.engine import check_usage
from tests.conformance.fake_connector import FakeConnector
from tests.conformance.fake_server import FakeServer
from tests.runtime.support import agent, session

GRAPH = chain(agent("a", 24), agent("b", 24))


@pytest.fixture(scope="module")
def behind(engine_of: Callable[..., LocalEngine]) -> LocalEngine:
    return engine_of("random:llama-tiny", "float64")


@pytest.fixture
def servers(behind: LocalEngine) -> Iterator[list[FakeServer]]:
    made = [FakeServer(behind, FakeConnector(behind), pause_s=0.002) for _ in range(2)]
    yield made
    for server in made:
        server.shut()


@pytest.fixture
def pool(servers: list[FakeServer]) -> Iterator[ServerPool]:
    with load_served([server.url for server in servers]) as engine:
        assert isinstance(engine, ServerPool)
        yield engine


async def test_runs_go_to_the_server_with_the_fewest(
    pool: ServerPool, servers: list[FakeServer]
) -> None:
    before = [len(server.real()) for server in servers]
    with session(pool, "kvcomm") as active:
        results = await asyncio.gather(*(active.arun(GRAPH, f"task {i}") for i in range(4)))
    for result in results:
        check_usage(result)
    after = [len(server.real()) for server in servers]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4, 4]


async def test_a_server_that_dies_loses_no_run(pool: ServerPool, servers: list[FakeServer]) -> None:
    with session(pool, "exact") as active:
        expected = [(await active.arun(GRAPH, f"task {i}")).answer for i in range(3)]

        async def kill() -> None:
            while not any(server.tasks for server in pool.servers):
                await asyncio.sleep(0.002)
            await asyncio.to_thread(servers[0].shut)

        killing = asyncio.create_task(kill())
        results = await asyncio.gather(*(active.arun(GRAPH, f"task {i}") for i in range(3)))
        await killing
        assert [result.answer for result in results] == expected
        warned = Counter(warning for result in results for warning in result.warnings)
        assert any("was lost: the run began again on another one" in text for text in warned)
        assert [server.up for server in pool.servers] == [False, True]
        assert (await active.arun(GRAPH, "task 1")).answer == expected[1]


async def test_auto_hears_what_was_measured_on_every_server(pool: ServerPool) -> None:
    with session(pool, "auto", audit_rate=1.0, target_divergence=100.0) as active:
        active.auto.priors = {f"message {level.name}": 0.0 for level in LEVELS}
        for i in range(3):
            await active.arun(chain(agent("a", 60), agent("b", 8)), f"task {i}")
        await active.adrain()
        assert active.auto.audits


def test_servers_of_different_models_are_refused(behind: LocalEngine) -> None:
    with (
        FakeServer(behind) as one,
        FakeServer(behind, models=("other",)) as two,
        pytest.raises(ModelError, match="give only servers of one model"),
    ):
        load_served([one.url, two.url])
