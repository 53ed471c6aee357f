"""Agents on different replicas: the same answers, the KV of messages brought along or computed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import ReplicaLost, UsageError
from kvcomm.graphs import AgentGraph, chain
from kvcomm.kv import KV
from kvcomm.runtime.result import Result
from tests.conformance.engine import check_books
from tests.runtime.support import TASKS, agent, auto, session

ray = pytest.importorskip("ray", reason="needs ray: pip install 'kvcomm[ray]'")

from kvcomm.engine.replicas import moves  # noqa: E402
from kvcomm.engine.replicas.costs import Choice, Rate  # noqa: E402
from kvcomm.engine.replicas.engine import RayEngine  # noqa: E402
from kvcomm.engine.replicas.moves import Moves  # noqa: E402
from kvcomm.engine.replicas.replica import Replica  # noqa: E402

GRAPH = chain(agent("a", 40), agent("b", 40), agent("c", 40))
PLACED = GRAPH.spread(2)


@pytest.fixture
async def engine(replicas: RayEngine) -> AsyncIterator[RayEngine]:
    """Two replicas that are up; what ran on them holds no KV of messages afterwards."""
    await back(replicas)
    yield replicas
    await back(replicas)
    assert not replicas.moves._sent
    async with asyncio.timeout(5):
        while any(held(replicas)):
            await asyncio.sleep(0.05)


async def back(engine: RayEngine) -> None:
    for replica in engine.replicas:
        with suppress(ReplicaLost):  # whose death nobody may have noticed yet
            await replica.call("blank", 8)
    while not all(replica.look() for replica in engine.replicas):
        await asyncio.sleep(0.1)


async def kill(replica: Replica) -> None:
    ray.kill(replica.actor, no_restart=False)
    with suppress(ray.exceptions.RayActorError):
        while True:  # it takes a moment
            await replica.actor.blank.remote(8)


def held(engine: RayEngine) -> list[list[str]]:
    """Of every replica, the entries that are pinned or would go with their last pin."""

    def look(hosted: Any) -> list[str]:
        hosted.engine.store.check_integrity()
        entries = hosted.engine.store._entries.items()
        return [key for key, entry in entries if entry.uses or entry.passing]

    return [ray.get(replica.actor.__ray_call__.remote(look)) for replica in engine.replicas]


def decide(monkeypatch: pytest.MonkeyPatch, *, move: bool) -> None:
    monkeypatch.setattr(moves, "choose", lambda *_: Choice(move, 1.0, "as the test says"))


def said(result: Result) -> dict[str, str]:
    return {call.node: call.text for call in result.calls}


def reused(result: Result) -> dict[str, int]:
    return {call.node: sum(step.realigned for step in call.steps) for call in result.calls}


def reasons(result: Result, node: str, name: str) -> str:
    (call,) = (call for call in result.calls if call.node == node)
    return next(step.reason for step in call.steps if step.name == name)


async def test_placed_agents_say_and_reuse_what_they_do_on_one_engine(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, move=True)
    with session(tiny, "kvcomm") as alone, session(engine, "kvcomm", namespace="same") as apart:
        for task in TASKS[:5]:
            expected, found = await alone.arun(GRAPH, task), await apart.arun(PLACED, task)
            assert (said(found), reused(found)) == (said(expected), reused(expected))
            check_books(found)
    assert "its KV came from replica 0, " in reasons(found, "b", "a")
    assert "replica" not in reasons(found, "b", "task")


async def test_auto_realigns_messages_from_other_replicas(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, move=True)
    with auto(tiny) as alone, auto(engine, namespace="auto") as apart:
        expected = [await alone.arun(GRAPH, task) for task in TASKS[:5]]
        found = [await apart.arun(PLACED, task) for task in TASKS[:5]]
    assert said(found[0]) == said(expected[0])
    local, placed = (sum(sum(reused(r).values()) for r in runs) for runs in (expected, found))
    assert placed >= 0.9 * local > 0
    assert not any(audit.error for result in found for audit in result.audits)
    came = [step.reason for result in found for call in result.calls for step in call.steps]
    assert any("its KV came from replica 1, " in reason for reason in came)


async def test_exact_says_what_dense_says_and_moves_nothing(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moves, "_choice", None)
    with session(tiny, "dense") as dense, session(engine, "exact", namespace="exact") as exact:
        for task in TASKS[:2]:
            expected, found = await dense.arun(GRAPH, task), await exact.arun(PLACED, task)
            assert said(found) == said(expected)


async def test_what_is_faster_computed_stays_where_it_is_and_says_so(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moves, "_move", None)
    engine.moves._computing = {(i, r.lives): Rate(0.0, 1e-9) for i, r in enumerate(engine.replicas)}
    with session(tiny, "dense") as dense, session(engine, "kvcomm", namespace="stays") as active:
        expected, found = await dense.arun(GRAPH, TASKS[0]), await active.arun(PLACED, TASKS[0])
    engine.moves._computing.clear()
    assert said(found) == said(expected)
    why = r"on replica 0; moving [\d.]+ kB would take 0\.\d+ s, computing 0\.000 s"
    assert re.search(why, reasons(found, "b", "a"))


async def test_both_ways_are_measured_when_they_are_first_needed(engine: RayEngine) -> None:
    engine.moves._moving.clear()
    with session(engine, "kvcomm", namespace="measured") as active:
        await active.arun(PLACED, TASKS[0])
    assert {(way[0], way[2]) for way in engine.moves._moving} == {(0, 1), (1, 0)}
    assert all(0 < rate.seconds(10**6) < 5 for rate in engine.moves._moving.values())
    assert all(0 < rate.seconds(100) < 5 for rate in engine.moves._computing.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_every_bit_arrives(engine: RayEngine, dtype: torch.dtype) -> None:
    kv = KV(*torch.randn(2, 3, 2, 3000, 4).to(dtype))
    source, target = (replica.actor for replica in engine.replicas)
    await source.__ray_call__.remote(lambda hosted: hosted.engine.store.put("bits", kv))
    kept = await target.adopt.remote("bits", [source.export.remote("bits")], [7], 5.0)
    assert kept == (kv.nbytes, "")
    found = await target.__ray_call__.remote(lambda hosted: hosted.engine.store.get("bits"))
    assert found.keys.dtype == dtype
    assert torch.equal(found.keys, kv.keys)
    assert torch.equal(found.values, kv.values)
    await source.__ray_call__.remote(lambda hosted: hosted.engine.store.drop("bits"))
    await target.__ray_call__.remote(lambda hosted: hosted.engine.store.unpin("bits", 7))
    assert not await target.__ray_call__.remote(lambda hosted: "bits" in hosted.engine.store)


async def test_a_second_reader_finds_the_copy(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, move=True)
    adopted = watched(monkeypatch)
    graph = AgentGraph(
        [agent("a", 40, replica=0), *(agent(name, 8, replica=1) for name in "bc")],
        [("a", "b"), ("a", "c"), ("b", "c")],
    )
    with session(engine, "kvcomm", namespace="twice") as active:
        await active.arun(graph, TASKS[0])
    assert len(adopted) == 1


async def test_a_producer_that_dies_on_the_way_costs_no_answer(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: Moves, source: Replica, *_: object) -> Choice:
        await kill(source)
        return Choice(True, 1.0, "")

    monkeypatch.setattr(Moves, "_choice", die)
    graph = chain(agent("a", 40, replica=0), agent("b", 40, replica=1))
    with session(tiny, "dense") as dense, session(engine, "kvcomm", namespace="dies") as active:
        expected, found = await dense.arun(graph, TASKS[0]), await active.arun(graph, TASKS[0])
    assert said(found) == said(expected)
    assert "replica 0 was lost" in reasons(found, "b", "a")
    assert not found.warnings


async def test_a_reader_that_dies_starts_over_elsewhere(
    engine: RayEngine, tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: Moves, source: Replica, home: Replica, *_: object) -> Choice:
        await kill(home)
        return Choice(True, 1.0, "")

    monkeypatch.setattr(Moves, "_choice", die)
    graph = chain(agent("a", 40, replica=0), agent("b", 40, replica=1))
    with session(tiny, "dense") as dense, session(engine, "kvcomm", namespace="read") as active:
        expected, found = await dense.arun(graph, TASKS[0]), await active.arun(graph, TASKS[0])
    assert said(found) == said(expected)


async def test_a_cancelled_run_leaves_no_copy(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, move=True)
    adopted = watched(monkeypatch, wait_s=0.1)
    with session(engine, "kvcomm", namespace="cancelled") as active:
        run = asyncio.create_task(active.arun(PLACED, TASKS[0]))
        while not adopted:
            await asyncio.sleep(0.005)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


async def test_a_replica_that_does_not_exist_is_said_before_anything_runs(
    engine: RayEngine,
) -> None:
    answered = engine.steps
    with (
        session(engine, "exact") as active,
        pytest.raises(UsageError, match="of `b` asks for replica 2, but there are 0 to 1"),
    ):
        await active.arun(chain(agent("a"), agent("b", replica=2)), TASKS[0])
    assert engine.steps == answered


async def test_an_engine_without_replicas_runs_placed_agents(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active:
        assert said(await active.arun(PLACED, TASKS[0])) == said(await active.arun(GRAPH, TASKS[0]))


def watched(monkeypatch: pytest.MonkeyPatch, wait_s: float = 0.0) -> list[str]:
    """The keys of all copies from now on; each waits a little on its way."""
    keys: list[str] = []
    call = Replica.call

    async def watching(self: Replica, operation: str, *args: Any) -> Any:
        if operation == "adopt":
            keys.append(args[0])
            await asyncio.sleep(wait_s)
        return await call(self, operation, *args)

    monkeypatch.setattr(Replica, "call", watching)
    return keys
