"""Room for rows: order, giving way, and a run that goes on whatever the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.engine.base import AHEAD, BACKGROUND, READY
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.room import Room, Ticket
from kvcomm.errors import Preempted
from kvcomm.graphs import debate, fully_connected
from tests.engine.support import COMPUTE, open_row, random_ids, segment
from tests.runtime.support import GRAPH, TASK, Events, agent, auto, session


class Asked:
    """A row ahead that gives way at once, or only remembers that it was asked."""

    def __init__(self, room: Room, nbytes: int, priority: int = AHEAD, *, at_once: bool = True):
        self.count = 0
        self._room, self._at_once = room, at_once
        ticket = room.try_enter(nbytes, priority, self.give_way)
        assert ticket is not None
        self.ticket: Ticket = ticket

    def give_way(self) -> None:
        self.count += 1
        if self._at_once:
            self._room.leave(self.ticket)


async def test_what_fits_enters_at_once() -> None:
    room = Room(lambda: 10)
    first = await room.enter(6)
    assert room.try_enter(5, AHEAD, lambda: None) is None
    assert room.try_enter(4, AHEAD, lambda: None) is not None
    assert room.used == 10
    room.leave(first)
    room.leave(first)
    assert room.used == 4


async def test_who_is_ready_waits_for_who_is_ready_in_order() -> None:
    room = Room(lambda: 10)
    first = await room.enter(10)
    order: list[str] = []

    async def wait(name: str, nbytes: int) -> None:
        ticket = await room.enter(nbytes)
        order.append(name)
        room.leave(ticket)

    tasks = [asyncio.create_task(wait(n, b)) for n, b in (("large", 9), ("small", 1))]
    await asyncio.sleep(0.01)
    assert not order
    assert room.try_enter(0, AHEAD, lambda: None) is None  # nobody overtakes
    room.leave(first)
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]
    assert room.used == 0


async def test_rows_ahead_give_way_the_latest_first_and_no_more_than_needed() -> None:
    room = Room(lambda: 12)
    rows = [Asked(room, 4) for _ in range(3)]
    await room.enter(7)
    assert [row.count for row in rows] == [0, 1, 1]
    assert room.used == 11


async def test_a_row_is_asked_once_and_the_ready_one_waits_until_it_has_left() -> None:
    room = Room(lambda: 4)
    row = Asked(room, 4, at_once=False)
    task = asyncio.create_task(room.enter(4))
    await asyncio.sleep(0.01)
    other = asyncio.create_task(room.enter(4))
    await asyncio.sleep(0.01)
    assert row.count == 1
    assert not task.done()
    room.leave(row.ticket)
    ticket = await task
    room.leave(ticket)
    room.leave(await other)


async def test_a_row_that_has_become_ready_keeps_its_room() -> None:
    room = Room(lambda: 4)
    row = Asked(room, 4)
    room.hurry(row.ticket, READY)
    task = asyncio.create_task(room.enter(4))
    await asyncio.sleep(0.01)
    assert row.count == 0
    room.hurry(row.ticket, BACKGROUND)  # answered, only audited from now on
    room.leave(await task)
    assert row.count == 1


async def test_a_row_larger_than_the_budget_is_admitted_alone() -> None:
    room = Room(lambda: 4)
    first = await room.enter(2)
    task = asyncio.create_task(room.enter(100))
    await asyncio.sleep(0.01)
    assert not task.done()
    room.leave(first)
    room.leave(await task)


async def test_who_is_cancelled_leaves_the_queue() -> None:
    room = Room(lambda: 4)
    first = await room.enter(4)
    task = asyncio.create_task(room.enter(4))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    room.leave(first)
    assert room.used == 0
    room.leave(await room.enter(4))


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_everybody_who_is_ready_gets_in(calls: list[tuple[int, bool]]) -> None:
    async def go() -> int:
        room = Room(lambda: 10)
        entered = 0

        async def ready(nbytes: int) -> None:
            nonlocal entered
            ticket = await room.enter(nbytes)
            entered += 1
            assert room.used <= 10 or room.used == nbytes
            await asyncio.sleep(0)
            room.leave(ticket)

        tasks = []
        for nbytes, ahead in calls:
            if ahead:
                held: list[Ticket] = []
                ticket = room.try_enter(nbytes, AHEAD, lambda h=held: room.leave(h[0]))  # type: ignore[misc]
                held += [ticket] if ticket else []
            else:
                tasks.append(asyncio.create_task(ready(nbytes)))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        return entered

    assert asyncio.run(go()) == sum(not ahead for _, ahead in calls)


# --- in an engine ---


@pytest.fixture
def narrow(tiny: LocalEngine) -> Iterator[LocalEngine]:
    """Room for one row of these graphs, not for two."""
    limit = tiny.budget.limit
    tiny.budget.limit = 400 * tiny.slot_bytes
    yield tiny
    assert tiny.room.used == 0
    tiny.budget.limit = limit


GRAPHS = {
    "chain": GRAPH,
    "full": fully_connected(agent("a", 30), agent("b", 20), agent("c", 5), agent("d")),
    "debate": debate(agent("a", 18), agent("b", 7), rounds=2, judge=agent("j", exact=True)),
}


@pytest.mark.parametrize("mode", ["exact", "kvcomm", "dense", "auto"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_run_goes_on_with_room_for_one_row(narrow: LocalEngine, name: str, mode: str) -> None:
    with session(narrow, "dense") as dense:
        expected = {call.node: call.text for call in dense.run(GRAPHS[name], TASK).calls}
    with session(narrow, mode) as active:
        found = active.run(GRAPHS[name], TASK)
    if mode in ("exact", "dense"):
        assert {call.node: call.text for call in found.calls} == expected
    assert len(found.calls) == len(expected)


def test_a_row_ahead_gives_way_and_is_computed_again(narrow: LocalEngine) -> None:
    # b is too large to be opened beside a, c is not; then b is ready, and c has to give way.
    long = replace(agent("b", 20), system="You are b, and you have much to remember. " * 8)
    graph = fully_connected(agent("a", 20), long, agent("c", 5))
    narrow.budget.limit = 440 * narrow.slot_bytes
    events = Events()
    with session(narrow, "exact", listeners=[events]) as active:
        result = active.run(graph, TASK)
    assert [event.node for event in events.of("node")] == ["a", "c", "b", "c"]
    assert result.call("c").report.redone_tokens > 0
    assert result.totals.extra["redone"] == result.call("c").report.redone_tokens
    with session(narrow, "dense") as dense:
        expected = dense.run(graph, TASK)
    assert result.answer == expected.answer


def test_audits_do_without_where_there_is_no_room(narrow: LocalEngine) -> None:
    graph = GRAPHS["chain"]
    with auto(narrow, target_divergence=100.0) as active:
        results = [active.run(graph, f"{TASK} {n}") for n in range(6)]
    errors = {audit.error for result in results for audit in result.audits}
    assert all(len(result.calls) == 3 for result in results)
    assert not errors or any("no room for a second row" in error for error in errors)


async def test_what_is_under_way_in_a_row_that_gives_way_fails_with_preempted(
    tiny: LocalEngine,
) -> None:
    seq = open_row(tiny, 3000)
    seq._priority = AHEAD
    work = asyncio.create_task(
        seq.extend([segment(random_ids(tiny, 2900))], [COMPUTE], settle=False)
    )
    await asyncio.sleep(0.003)
    seq.give_way(asyncio.get_running_loop())
    with pytest.raises(Preempted, match="gave way"):
        await work
    with pytest.raises(Preempted):
        await seq.extend([segment([1, 2])], [COMPUTE])
    # The engine goes on.
    other = open_row(tiny, 50)
    await other.extend([segment(random_ids(tiny, 20))], [COMPUTE])
    assert other.length == 20
