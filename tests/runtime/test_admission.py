"""Turns and time limits: how many runs go on at once, in which order, and for how long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvcomm.agents import Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import RunTimeout, UsageError
from kvcomm.graphs import AgentGraph, chain
from kvcomm.runtime.admission import Admission, Deadline
from kvcomm.trace import read_trace
from tests.runtime.support import ENDLESS, TASK, Events, agent, check_at_rest, session

ALONE = chain(agent("a"))


async def test_runs_begin_in_the_order_in_which_they_came() -> None:
    admission, order = Admission(2), []

    async def run(number: int) -> None:
        await admission.enter(Deadline(None))
        order.append(number)
        assert len(order) - len(done) <= 2
        await asyncio.sleep(0)
        done.append(number)
        admission.leave()

    done: list[int] = []
    await asyncio.gather(*(run(number) for number in range(9)))
    assert order == list(range(9))


async def test_who_stops_waiting_takes_no_place() -> None:
    """Also where its turn comes at the moment of cancelling: the place goes on to the next."""
    admission = Admission(1)
    await admission.enter(Deadline(None))
    waiting = [asyncio.create_task(admission.enter(Deadline(None))) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    admission.leave()  # to the second, which is cancelled before it hears of it
    waiting[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]
    await waiting[2]
    admission.leave()
    assert (admission._free, len(admission._waiting)) == (1, 0)


def test_places_are_shared_by_event_loops() -> None:
    admission, inside, most = Admission(2), set[object](), [0]

    async def run() -> None:
        await admission.enter(Deadline(None))
        inside.add(me := object())
        most[0] = max(most[0], len(inside))
        for _ in range(5):
            await asyncio.sleep(0)
        inside.discard(me)
        admission.leave()

    async def several() -> None:
        await asyncio.gather(*(run() for _ in range(20)))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(asyncio.run, several()) for _ in range(4)]:
            done.result()
    assert most[0] <= 2
    assert (admission._free, len(admission._waiting)) == (2, 0)


async def test_a_session_runs_what_it_may_and_says_who_waited(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    events = Events()
    active = session(tiny, "exact", max_runs=1, listeners=[events])
    runs = [active.arun(ALONE, f"{TASK} {i}", out=tmp_path / str(i)) for i in range(3)]
    results = await asyncio.gather(*runs)
    assert [e.kind for e in events.all if e.kind in ("run", "end")] == ["run", "end"] * 3
    queued = [result.totals.queued_s for result in results]
    assert queued[0] < queued[1] < queued[2]
    assert queued[1] > 0.9 * results[0].totals.wall_s, "the second waited for the first"
    finished = read_trace(tmp_path / "2" / "trace.jsonl").finished
    assert finished.totals.queued_s == queued[2]


def test_a_run_that_fails_gives_its_place_back(tiny: LocalEngine) -> None:
    with session(tiny, "exact", max_runs=1) as active:
        with pytest.raises(UsageError, match="no input"):
            active.run(ALONE, TASK, other="x")
        stream = active.stream(ENDLESS, TASK)
        next(stream)
        stream.close()
        assert active.run(ALONE, TASK).answer


@pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm"])
def test_a_run_ends_at_its_time_limit(tiny: LocalEngine, mode: str, tmp_path: Path) -> None:
    with session(tiny, mode) as active:
        with pytest.raises(RunTimeout, match=r"longer than its timeout of 0\.3 s"):
            active.run(ENDLESS, TASK, out=tmp_path, timeout_s=0.3)
        trace = read_trace(tmp_path / "trace.jsonl")
        assert trace.finished.status == "failed"
        (error,) = trace.errors
        assert error.node is None
        assert "timeout of 0.3 s" in error.error
        check_at_rest(tiny)
        assert active.run(ALONE, TASK, timeout_s=600).answer
        with pytest.raises(RunTimeout):
            list(active.stream(ENDLESS, TASK, timeout_s=0.3))


async def test_waiting_counts_for_the_time_limit(tiny: LocalEngine, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def wait(texts: Mapping[str, str]) -> str:
        await release.wait()
        return "x"

    held = AgentGraph([Tool("web", wait), agent("a")], [("web", "a")])
    active = session(tiny, "exact", max_runs=1)
    first = asyncio.create_task(active.arun(held, TASK))
    await asyncio.sleep(0)
    with pytest.raises(RunTimeout, match="waiting for its turn: max_runs is 1"):
        await active.arun(ALONE, TASK, out=tmp_path / "late", timeout_s=0.05)
    assert not (tmp_path / "late").exists(), "it never began"
    release.set()
    assert (await first).answer


def test_limits_have_to_be_limits(tiny: LocalEngine) -> None:
    events = Events()
    with session(tiny, "exact", listeners=[events]) as active:
        for seconds in (0, -1.0, math.nan):
            with pytest.raises(UsageError, match="timeout_s"):
                active.run(ALONE, TASK, timeout_s=seconds)
    assert not events.all
    with pytest.raises(UsageError, match="max_runs"):
        session(tiny, "exact", max_runs=0)
