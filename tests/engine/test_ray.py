"""Whole runs on replicas: as on one engine, also when a replica dies or learns."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kvcomm.agents import Tool
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import KvcommError, NodeFailed, ReplicaLost, RunTimeout, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.kv.files import load_tensors
from kvcomm.own_file import Wanted, load_own
from kvcomm.reuse.state import FORMAT, belongs
from kvcomm.runtime.result import Result
from kvcomm.runtime.stream_events import Delta, NodeEnd, RunStart
from kvcomm.session import Session
from kvcomm.trace.read import read_trace
from tests.reuse.offsets_conformance import close
from tests.runtime.support import ENDLESS, GRAPH, TASKS, Events, agent, auto, session

ray = pytest.importorskip("ray", reason="needs ray: pip install 'kvcomm[ray]'")

from kvcomm.engine.ray import RayEngine, Replica  # noqa: E402


@pytest.fixture(scope="module")
def replicas() -> Iterator[RayEngine]:
    """Two replicas of the tiny model in float64, on a cluster of their own."""
    with load_engine("random:llama-tiny", replicas=2, device="cpu", dtype="float64") as engine:
        yield engine


@pytest.fixture
async def engine(replicas: RayEngine) -> RayEngine:
    """The replicas, all of them up."""
    while not all(replica.look() for replica in replicas.replicas):
        await asyncio.sleep(0.05)
    return replicas


def said(result: Result) -> dict[str, str]:
    return {call.node: call.text for call in result.calls}


def counted(folder: Path) -> Counter[str]:
    return Counter(event.kind for event in read_trace(folder / "trace.jsonl").events)


async def known(replica: Replica, engine: RayEngine, namespace: str) -> dict[Any, Any]:
    """The linear statistics that a replica has of a namespace, by template and label."""
    tenant = belongs

    def read(local: LocalEngine) -> dict[Any, Any]:
        return {
            key: model.state()
            for key, model in local.offsets.models.items()
            if tenant(key[1], namespace) and model.samples
        }

    async def run(host: Any, emit: object) -> Any:
        return await host.engine.call(functools.partial(read, host.engine))

    async def receive(item: object) -> None: ...

    return await engine.do(replica, ray.cloudpickle.dumps(run), receive, learns=True)


async def test_runs_say_what_they_say_on_one_engine(
    engine: RayEngine, tiny: LocalEngine, tmp_path: Path
) -> None:
    with session(tiny, "dense", runs=tmp_path / "local") as active:
        expected = [active.run(GRAPH, task) for task in TASKS[:4]]
    heard = Events()
    before = [replica.placed for replica in engine.replicas]
    with session(engine, "dense", runs=tmp_path / "ray", listeners=[heard]) as active:
        found = await asyncio.gather(*(active.arun(GRAPH, task) for task in TASKS[:4]))
    assert [replica.placed for replica in engine.replicas] == [n + 2 for n in before]
    for local, result in zip(expected, found, strict=True):
        assert said(result) == said(local)
        times = {"wall_s", "queued_s"}
        assert result.totals.model_dump(exclude=times) == local.totals.model_dump(exclude=times)
        assert counted(result.trace.path) == counted(local.trace.path)
        here, there = (read_trace(r.trace.path / "trace.jsonl").texts for r in (local, result))
        assert here
        assert sorted(here.values()) == sorted(there.values())
    assert len(heard.of("end")) == 4


@pytest.mark.slow
async def test_streams_and_their_end(engine: RayEngine, tmp_path: Path) -> None:
    with session(engine, "exact") as active:
        items = list(active.stream(GRAPH, TASKS[0]))
        texts = {item.node: item.text for item in items if isinstance(item, NodeEnd)}
        assert isinstance(items[0], RunStart)
        assert texts == said(items[-1])
        assert {item.node for item in items if isinstance(item, Delta)} == texts.keys()
        async with aclosing(active.astream(ENDLESS, "Go on.", out=tmp_path)) as stream:
            async for item in stream:
                if isinstance(item, NodeEnd):
                    break
        cut = read_trace(tmp_path / "trace.jsonl").finished
        assert cut
        assert cut.status == "interrupted"
        assert [replica.tasks for replica in engine.replicas] == [0, 0]


@pytest.mark.slow
async def test_a_run_is_cancelled_and_timed_and_fails_as_elsewhere(engine: RayEngine) -> None:
    def fails(texts: Mapping[str, str]) -> str:
        raise LookupError("nothing is there")

    broken = AgentGraph([Tool("web", fails), agent("b")], [("web", "b")])
    with session(engine, "exact", max_runs=1) as active:
        with pytest.raises(RunTimeout, match=r"timeout of 0\.5 s") as timed:
            await active.arun(ENDLESS, "Go on.", timeout_s=0.5)
        assert timed.value.seconds == 0.5
        with pytest.raises(NodeFailed, match="nothing is there") as failed:
            await active.arun(broken, "Go on.")
        assert failed.value.node == "web"
        started = asyncio.Event()
        heard = session(engine, "exact", listeners=[lambda event: started.set()])
        running = asyncio.create_task(heard.arun(ENDLESS, "Go on."))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [replica.tasks for replica in engine.replicas] == [0, 0]


@pytest.mark.slow
async def test_functions_are_sent_or_named_if_they_cannot_be(
    engine: RayEngine, tmp_path: Path
) -> None:
    found, lock = "eight legs", threading.Lock()
    path = tmp_path / "mine.py"
    path.write_text(
        "from kvcomm.agents import Tool, solver\n"
        "from kvcomm.graphs import chain\n"
        "def look(texts):\n    return LEGS\n"
        "LEGS = 'of a file'\n"
        "graph = chain(Tool('web', look), solver(post=lambda text: LEGS))\n"
    )
    own = load_own(str(path), Wanted(AgentGraph, "graph", ""))

    def graph(function: Callable[[Mapping[str, str]], str]) -> AgentGraph:
        return AgentGraph([Tool("web", function), agent("b")], [("web", "b")])

    with session(engine, "exact") as active:
        result = await active.arun(graph(lambda texts: found + texts["task"]), "?")
        assert result.tools[0].texts == {"web": "eight legs?"}
        result = await active.arun(own, "?")
        assert (result.tools[0].texts, result.answer) == ({"web": "of a file"}, "of a file")
        with pytest.raises(UsageError, match=r"node `web` cannot be sent to a replica: .*lock"):
            await active.arun(graph(lambda texts: str(lock)), "?")


@pytest.mark.slow
async def test_a_replica_that_dies_changes_nothing_but_warnings(
    engine: RayEngine, tiny: LocalEngine, tmp_path: Path
) -> None:
    door = tmp_path / "open"

    async def wait(texts: Mapping[str, str]) -> str:
        while not door.exists():
            await asyncio.sleep(0.01)
        return "The door is open."

    nodes = [agent("a", 20), Tool("door", wait), agent("b", 20)]
    graph = AgentGraph(nodes, [("a", "door"), ("a", "b"), ("door", "b")])
    heard, called = Events(), asyncio.Event()

    def calls(event: Any) -> None:
        if event.kind == "call":
            called.set()

    with session(engine, "exact", runs=tmp_path / "ray", listeners=[heard, calls]) as active:
        runs = [asyncio.create_task(active.arun(graph, task)) for task in TASKS[:3]]
        await called.wait()
        doomed = max(engine.replicas, key=lambda replica: replica.tasks)
        ray.kill(doomed.actor, no_restart=False)
        await _until(lambda: doomed.about is None)
        door.touch()
        found = await asyncio.gather(*runs)
    with session(tiny, "dense") as active:
        expected = [said(await active.arun(graph, task)) for task in TASKS[:3]]
    assert [said(result) for result in found] == expected
    assert sum(bool(result.warnings) for result in found) == len(heard.of("restart")) == 2
    for result in found:
        counts = counted(result.trace.path)
        assert (counts["run"], counts["call"], counts["message"], counts["end"]) == (1, 2, 2, 1)
        assert counts["restart"] == len(result.warnings)
        assert all("was lost: the run began again" in line for line in result.warnings)


@pytest.mark.slow
async def test_when_none_is_left_it_says_so(engine: RayEngine) -> None:
    gone = Replica(0, None)
    gone.dead = True
    about = engine.replicas[0].about
    assert about
    alone = RayEngine([gone], about)
    with pytest.raises(KvcommError, match="all 1 replicas are lost, and Ray starts none again"):
        await session(alone, "exact").arun(GRAPH, TASKS[0])
    alone._background.close()


@pytest.mark.slow
async def test_a_run_is_not_begun_for_ever(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = mock.AsyncMock(side_effect=ReplicaLost("a replica was lost"))
    monkeypatch.setattr(engine, "do", do)
    with (
        session(engine, "exact") as active,
        pytest.raises(KvcommError, match="the run has lost 3 replicas: it may be what ends them"),
    ):
        await active.arun(GRAPH, TASKS[0])
    assert do.call_count == 3


@pytest.mark.slow
async def test_runs_go_where_fewest_are_and_graphs_and_chats_return(engine: RayEngine) -> None:
    one = await engine.place("one")
    assert await engine.place("one") is one
    one.tasks += 1
    assert await engine.place("one") is not one
    assert await engine.place("chat", stay=True) is not one
    one.tasks -= 1
    chat = await engine.place("chat", stay=True)
    chat.tasks += 1
    assert await engine.place("chat", stay=True) is chat
    chat.tasks -= 1
    assert {replica.tasks for replica in engine.replicas} == {0}


@pytest.mark.slow
async def test_the_state_of_two_replicas_is_that_of_one_engine(
    engine: RayEngine, tiny: LocalEngine, tmp_path: Path
) -> None:
    before = [replica.placed for replica in engine.replicas]
    # Two samples of each template: too few for calls to be probed, which takes room and chances.
    other = GRAPH.with_agents(lambda agent: replace(agent, system="You are somebody else."))
    for home, name in ((tiny, "local"), (engine, "ray")):
        with auto(home, prior=1e9, namespace="union", state=tmp_path / name) as active:
            # Texts of their own: no graph realigns what the other one has read.
            work = [*((GRAPH, task) for task in TASKS[:2]), *((other, task) for task in TASKS[2:4])]
            runs = [active.arun(graph, task) for graph, task in work]
            await asyncio.gather(*runs)
    placed = [replica.placed - n for replica, n in zip(engine.replicas, before, strict=True)]
    assert placed == [2, 2]
    alone, shared = (_states(tmp_path / name) for name in ("local", "ray"))
    # The first ones lend what they read, and hear nobody.
    assert len(alone) == 2 * (len(GRAPH.nodes) - 1)
    assert shared.keys() == alone.keys()
    for name, tensors in alone.items():
        assert {int(tensor[1]) for key, tensor in tensors.items() if "counters" in key} == {2}
        assert close(shared[name], tensors, 1e-9)


@pytest.mark.slow
async def test_audits_of_all_replicas_are_counted_once(engine: RayEngine, tmp_path: Path) -> None:
    with auto(engine, prior=1e9, namespace="audits", state=tmp_path) as active:
        found = []
        for first in range(0, 8, 2):
            two = (active.arun(GRAPH, task) for task in TASKS[first : first + 2])
            found += await asyncio.gather(*two)
        await active.adrain()
        measured = sum(a.divergence is not None for r in found for a in r.audits)
        assert sum(map(len, active.auto.audits.values())) == measured > 0
    assert list(tmp_path.glob("*.audits.json"))


def _states(folder: Path) -> dict[str, Any]:
    """The models in a state folder, their running errors left out."""
    return {
        path.stem: {
            name: tensor[:2] if name.endswith("counters") else tensor
            for name, tensor in load_tensors(path, FORMAT)[0].items()
        }
        for path in folder.glob("*.safetensors")
    }


@pytest.mark.slow
async def test_all_know_once_what_one_has_learned(engine: RayEngine, tmp_path: Path) -> None:
    with auto(engine, prior=1e9, namespace="all", state=tmp_path) as active:
        await asyncio.gather(*(active.arun(GRAPH, task) for task in TASKS[6:10]))
        await active.save()
        knows = [await known(replica, engine, "all") for replica in engine.replicas]
        second = engine.replicas[1]
        ray.kill(second.actor, no_restart=False)
        await _until(lambda: _is_lost(second))
        await _until(lambda: second.look())
        knows.append(await known(second, engine, "all"))
        for _ in range(2):
            await active.save()
            knows.append(await known(second, engine, "all"))
    # Another engine's session, and replicas that know nothing: what the folder says.
    first, *others = knows
    assert first
    for other in others:
        assert other.keys() == first.keys()
        for key, state in first.items():
            errors = state.keys() - {"counters"}
            assert close({n: state[n] for n in errors}, {n: other[key][n] for n in errors}, 1e-12)
            assert state["counters"][:2].tolist() == other[key]["counters"][:2].tolist()


@pytest.mark.slow
async def test_a_model_is_measured_on_a_replica_and_known_here(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    with session(engine, "auto") as active:
        await active.awarm_up()
        assert active.auto.priors
        assert list((tmp_path / "priors").iterdir())
        assert not (await active.arun(GRAPH, TASKS[0])).warnings


async def _until(condition: Callable[[], Any]) -> None:
    while True:
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.05)


async def _is_lost(replica: Replica) -> bool:
    try:
        await replica.ask("about")
    except KvcommError:
        return True
    return False


@pytest.mark.slow
async def test_a_replica_that_was_away_is_told_nothing_twice(engine: RayEngine) -> None:
    first, second = engine.replicas
    with auto(engine, prior=1e9, namespace="away") as active:
        await asyncio.gather(*(active.arun(GRAPH, task) for task in TASKS[:2]))
        for replica in engine.replicas:
            await engine._behind(engine._collect(replica))
        before = await known(second, engine, "away")
        second.lost()  # it does not answer for once, and another one is told meanwhile
        await known(first, engine, "away")
        await _until(second.look)
        assert before
        after = await known(second, engine, "away")
    for key, state in before.items():
        assert state["counters"].tolist() == after[key]["counters"].tolist()


@pytest.mark.slow
def test_what_replicas_have_not_is_refused() -> None:
    with pytest.raises(UsageError, match="replicas have no `kv_cache`"):
        load_engine("random:llama-tiny", replicas=2, kv_cache=Path("spilled"))


@pytest.mark.slow
def test_sessions_on_replicas_close_from_anywhere(replicas: RayEngine) -> None:
    with Session(replicas, reuse="exact", state=None, runs=None) as active:
        answers = [active.run(GRAPH, TASKS[0]).answer, active.chat(GRAPH).run(TASKS[0]).answer]
    assert answers[0] == answers[1]
