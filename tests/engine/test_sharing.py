"""What one replica learned all replicas know, once; what is saved is what all have learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import StateError
from kvcomm.kv.files import load_tensors
from kvcomm.reuse.state import FORMAT, belongs
from kvcomm.runtime.session import Session
from tests.reuse.offsets_conformance import but_errors, close
from tests.runtime.support import GRAPH, TASKS, auto

ray = pytest.importorskip("ray", reason="needs ray: pip install 'kvcomm[ray]'")

from kvcomm.engine.replicas import sharing  # noqa: E402
from kvcomm.engine.replicas.engine import RayEngine  # noqa: E402
from kvcomm.engine.replicas.lessons import Lessons  # noqa: E402
from kvcomm.engine.replicas.replica import Replica  # noqa: E402


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No exchange that nobody asked for."""
    monkeypatch.setattr(sharing, "SHARE_S", 1e9)
    return


@pytest.fixture
async def engine(replicas: RayEngine, rarely: None) -> AsyncIterator[RayEngine]:
    """Both replicas up, and nothing left to exchange."""
    await up(replicas)
    await replicas.sharing.exchange()
    yield replicas
    await up(replicas)


async def up(engine: RayEngine) -> None:
    while not all(replica.look() for replica in engine.replicas):
        await asyncio.sleep(0.1)


def exact(engine: Any, namespace: str, **options: Any) -> Session:
    """A session of `auto` that computes every call and learns from it."""
    return auto(engine, prior=1e9, namespace=namespace, **options)


async def learn(engine: Any, namespace: str, tasks: list[str], **options: Any) -> None:
    """Run the graph on all tasks at once, on whatever replicas."""
    with exact(engine, namespace, **options) as active:
        await asyncio.gather(*(active.arun(GRAPH, task) for task in tasks))


async def restarted(replica: Replica) -> None:
    """Wait until its actor is gone and has come back, without the driver's noticing."""
    gone = False
    while True:
        try:
            await asyncio.wrap_future(replica.actor.about.remote().future())
            if gone:
                return
        except ray.exceptions.RayError:
            gone = True
        await asyncio.sleep(0.02)


async def bytes_of(replica: Replica, namespace: str) -> int:
    return (await replica.call("ask", "state_bytes", "linear", namespace))[0]  # type: ignore[no-any-return]


async def all_of(replica: Replica) -> Lessons:
    """Everything that a replica knows. What it had not told yet is then nowhere else."""
    (known, late), _ = await replica.call("learn", "copy")
    assert not late
    return known  # type: ignore[no-any-return]


def read(folder: Path, namespace: str) -> dict[str, Any]:
    """A namespace's models in a state folder, their running errors left out."""
    found = {}
    for path in folder.glob("*.safetensors"):
        if not belongs(path.stem, namespace):
            continue
        tensors, _ = load_tensors(path, FORMAT)
        found[path.stem] = {
            name: tensor[:2] if name.endswith("counters") else tensor
            for name, tensor in tensors.items()
        }
    return found


async def test_the_state_of_two_replicas_is_that_of_one_engine(
    engine: RayEngine, tiny: LocalEngine, tmp_path: Path
) -> None:
    runs = [replica.runs for replica in engine.replicas]
    for home, name in ((engine, "ray"), (tiny, "local")):
        await learn(home, "union", TASKS[:6], state=tmp_path / name)
    assert all(r.runs > before for r, before in zip(engine.replicas, runs, strict=True))
    shared, alone = (read(tmp_path / name, "union") for name in ("ray", "local"))
    assert len(alone) == len(GRAPH.nodes) - 1  # the first one lends what it reads, and hears nobody
    assert shared.keys() == alone.keys()
    for template, tensors in alone.items():
        assert close(shared[template], tensors, 1e-9)


async def test_both_know_the_same_after_an_exchange_and_nothing_twice_after_more(
    engine: RayEngine,
) -> None:
    await learn(engine, "same", TASKS[6:10])
    for _ in range(3):
        await engine.sharing.exchange()
    first, second = [await all_of(replica) for replica in engine.replicas]
    assert first.keys() == second.keys()
    for key, state in first.items():
        assert close(but_errors(state), but_errors(second[key]), 1e-12)


async def test_a_replica_that_is_started_anew_is_told_everything(engine: RayEngine) -> None:
    await learn(engine, "anew", TASKS[10:14])
    await engine.sharing.exchange()
    first, second = engine.replicas
    before = await all_of(first)
    ray.kill(second.actor, no_restart=False)
    await learn(engine, "anew more", TASKS[14:16])
    await up(engine)
    await engine.sharing.exchange()
    after, told = await all_of(first), await all_of(second)
    assert before.keys() < after.keys()
    assert after.keys() == told.keys()
    for key, state in after.items():
        assert close(but_errors(state), but_errors(told[key]), 1e-12)
        if key in before:
            assert close(but_errors(state), but_errors(before[key]), 0)


async def test_a_death_that_nobody_noticed_is_found_by_the_exchange(engine: RayEngine) -> None:
    await learn(engine, "unnoticed", TASKS[:2])
    await engine.sharing.exchange()
    first, second = engine.replicas
    lives = second.lives
    ray.kill(second.actor, no_restart=False)
    await restarted(second)
    assert second.lives == lives
    assert await bytes_of(second, "unnoticed") == 0
    await engine.sharing.exchange()
    assert await bytes_of(second, "unnoticed") == await bytes_of(first, "unnoticed") > 0


async def test_when_all_died_the_folder_is_read_again(engine: RayEngine, tmp_path: Path) -> None:
    await learn(engine, "all", TASKS[:2], state=tmp_path)
    saved = read(tmp_path, "all")
    assert saved
    for replica in engine.replicas:
        ray.kill(replica.actor, no_restart=False)
    await asyncio.sleep(0.5)
    for replica in engine.replicas:  # notice
        with pytest.raises(Exception, match="lost"):
            await replica.call("about")
    with pytest.raises(StateError, match="not saved"):
        await engine.save_state(tmp_path, "all")
    await up(engine)
    await engine.save_state(tmp_path, "all")
    for template, tensors in read(tmp_path, "all").items():
        assert close(tensors, saved[template], 0)
    first, second = [await bytes_of(replica, "all") for replica in engine.replicas]
    assert first == second > 0


async def test_exchanges_come_by_themselves_after_a_while(
    replicas: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "SHARE_S", 0.0)
    monkeypatch.setattr(sharing, "RARELY", 0)
    await up(replicas)
    await replicas.sharing.exchange()
    await learn(replicas, "by itself", TASKS[:4])
    sizes: set[int] = set()
    for _ in range(200):
        replicas.sharing.observed()
        await asyncio.sleep(0.05)
        sizes = {await bytes_of(replica, "by itself") for replica in replicas.replicas}
        if len(sizes) == 1:
            break
    assert len(sizes) == 1
    assert 0 not in sizes
