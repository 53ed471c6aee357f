"""Replicas on Ray: runs are spread over them, and one that dies changes no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from kvcomm.engine.base import AHEAD, Answer
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import KvcommError, NotANumber, ReplicaLost
from kvcomm.graphs import chain
from kvcomm.runtime.result import Result
from kvcomm.sampling import Sampling
from tests.conformance.engine import COMPUTE, answered, call, check_books, pieces, prompt
from tests.runtime.support import TASKS, agent, session

ray = pytest.importorskip("ray", reason="needs ray: pip install 'kvcomm[ray]'")

from kvcomm.engine.replicas.engine import RayEngine  # noqa: E402
from kvcomm.engine.replicas.replica import _restored  # noqa: E402

GRAPH = chain(agent("a", 40), agent("b", 40), agent("c", 40))


def said(result: Result) -> dict[str, str]:
    return {call.node: call.text for call in result.calls}


async def back(engine: RayEngine) -> None:
    """Wait until all replicas are up."""
    while not all(replica.look() for replica in engine.replicas):
        await asyncio.sleep(0.1)


async def test_a_replica_says_what_the_local_engine_says(
    replicas: RayEngine, tiny: LocalEngine
) -> None:
    assert replicas.fingerprint == tiny.fingerprint
    assert replicas.capabilities == tiny.capabilities
    assert replicas.codec.encode("Three spiders") == tiny.codec.encode("Three spiders")
    ids = prompt(tiny, 90)
    assert await answered(replicas, ids, 12) == await answered(tiny, ids, 12)


async def test_runs_are_spread_and_keep_together(replicas: RayEngine) -> None:
    first = [replicas.open(replace(call(20), run=f"spread {i}")) for i in range(4)]
    again = [replicas.open(replace(call(20), run=f"spread {i}")) for i in range(4)]
    assert sorted(seq.home.index for seq in first) == [0, 0, 1, 1]
    assert [seq.home for seq in again] == [seq.home for seq in first]
    for seq in first + again:
        await seq.close()
    assert [replica.rows for replica in replicas.replicas] == [0, 0]


@pytest.mark.parametrize("mode", ["exact", "kvcomm"])
async def test_a_replica_that_dies_changes_no_answer(
    replicas: RayEngine, tiny: LocalEngine, mode: str
) -> None:
    await back(replicas)
    tasks = TASKS[:4]
    with session(tiny, "dense") as active:
        expected = [said(await active.arun(GRAPH, task)) for task in tasks]
    lives = replicas.replicas[0].lives
    with session(replicas, mode, namespace=f"dies {mode}") as active:
        runs = [asyncio.create_task(active.arun(GRAPH, task)) for task in tasks]
        answered_before = replicas.steps
        while replicas.steps < answered_before + 3 or not replicas.replicas[0].rows:
            await asyncio.sleep(0.001)
        ray.kill(replicas.replicas[0].actor, no_restart=False)
        results = await asyncio.gather(*runs)
    assert [said(result) for result in results] == expected
    for result in results:
        check_books(result)
        assert sorted(call.node for call in result.calls) == ["a", "b", "c"]
        assert not result.warnings
    await back(replicas)
    assert replicas.replicas[0].lives == lives + 1
    assert await answered(replicas, prompt(replicas, 30), 4)


async def test_a_row_of_a_dead_replica_says_so_and_its_messages_are_nowhere(
    replicas: RayEngine,
) -> None:
    await back(replicas)
    made = replace(call(60, shared=True), run="dead", priority=AHEAD)
    seq = replicas.open(made)
    ids = prompt(replicas, 40)
    await seq.extend(pieces(ids, 40), [COMPUTE], answer=Answer(Sampling(max_tokens=4)))
    [token async for token in seq.decode()]
    ray.kill(seq.home.actor, no_restart=False)

    async def until_lost() -> None:
        while True:  # killing takes a moment
            await seq.truncate(40)

    with pytest.raises(ReplicaLost, match="was lost"):
        await until_lost()
    await seq.settle()
    await seq.close()
    moved = replicas.open(made)
    assert moved.home is not seq.home
    await moved.close()
    await back(replicas)


def test_errors_keep_their_text(all_errors: Callable[[], list[KvcommError]]) -> None:
    for error in all_errors():
        found = _restored(type(error), str(error))
        assert (type(found), str(found)) == (type(error), str(error))


@pytest.fixture
def all_errors() -> Callable[[], list[KvcommError]]:
    return lambda: [NotANumber("float16"), ReplicaLost("replica 1 was lost")]
