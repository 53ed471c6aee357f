"""Memory for sequences: order, preemption, and runs that go on whatever the budget."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.engine.base import AHEAD, BACKGROUND, READY
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.reservations import Reservations
from kvcomm.errors import OutOfMemory, Preempted
from kvcomm.graphs import fully_connected
from tests.engine.support import (
    answer,
    at_once,
    extend,
    generate,
    on_thread,
    open_seq,
    random_ids,
    said,
)
from tests.runtime.support import Events, agent, answered


@dataclass(eq=False)
class Seq:
    """A sequence that wants memory."""

    priority: int = READY
    reserved: int = 0
    order: int = 0


def admission(limit: int, *priorities: int, nbytes: int = 4) -> tuple[Reservations, list[Seq]]:
    """Room for `limit` bytes, some of which these sequences hold."""
    made, seqs = Reservations(lambda: limit), [Seq(priority) for priority in priorities]
    assert all(made.try_reserve(seq, nbytes) for seq in seqs)
    return made, seqs


def test_what_fits_is_reserved_at_once_and_given_back_once() -> None:
    room, (first,) = admission(10, READY, nbytes=6)
    assert not room.try_reserve(Seq(AHEAD), 5)
    assert room.try_reserve(Seq(AHEAD), 4)
    assert room.used == 10
    room.release(first)
    room.release(first)
    assert (room.used, first.reserved) == (4, 0)


def test_who_is_ready_waits_in_line_and_nobody_overtakes() -> None:
    room, (first,) = admission(10, READY, nbytes=10)
    large, small = Seq(), Seq()
    room.reserve(large, 9)
    room.reserve(small, 1)
    assert (room.admit(), room.victims()) == ([], [])
    room.release(first)
    assert not room.try_reserve(Seq(AHEAD), 1)
    assert room.admit() == [large, small]


def test_the_latest_are_preempted_first_and_no_more_than_needed() -> None:
    room, (_, second, third) = admission(12, AHEAD, BACKGROUND, AHEAD)
    room.reserve(Seq(), 7)
    assert room.victims() == [third, second]
    third.priority = READY  # its last input has come
    assert room.victims() != [third, second]
    assert third not in room.victims()


def test_who_has_grown_holds_more() -> None:
    room, (first, second) = admission(12, READY, AHEAD)
    room.grow(first, 9)
    room.grow(second, 2)
    assert room.used == 13
    room.reserve(Seq(), 3)
    assert room.victims() == [second]


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([READY, AHEAD])), max_size=20))
def test_everybody_who_is_ready_gets_in(calls: list[tuple[int, int]]) -> None:
    room, inside, entered = Reservations(lambda: 10), list[Seq](), 0
    for nbytes, priority in calls:
        seq = Seq(priority)
        if priority == READY:
            room.reserve(seq, nbytes)
        elif room.try_reserve(seq, nbytes):
            inside.append(seq)
    while room.waiting:
        for victim in room.victims():
            room.release(victim)
        admitted = room.admit()
        assert admitted or inside
        assert room.used <= 10 or len(room.held) == 1
        entered += len(admitted)
        inside += admitted
        room.release(inside.pop(0))
    assert entered == sum(priority == READY for _, priority in calls)


# --- in an engine ---


@pytest.fixture
def narrow(limited: LocalEngine) -> LocalEngine:
    """Room for one sequence of these graphs, not for two."""
    limited.budget.limit = 400 * limited.slot_bytes
    return limited


def test_a_call_ahead_gives_way_and_is_computed_again(narrow: LocalEngine) -> None:
    # b is too large to be opened beside a, c is not; then b is ready, and c has to give way.
    long = replace(agent("b", 20), system="You are b, and you have much to remember. " * 8)
    graph = fully_connected(agent("a", 20), long, agent("c", 5))
    narrow.budget.limit = 440 * narrow.slot_bytes
    events = Events()
    result = answered(narrow, "exact", graph, listeners=[events])
    began = [event.node for event in events.of("node")]
    assert (began[-2:], began.count("c")) == (["b", "c"], 2)
    assert result.totals.extra["redone"] == result.call("c").report.redone_tokens > 0
    assert result.answer == answered(narrow, "dense", graph).answer


async def test_a_ready_call_waits_for_room_and_others_are_refused(narrow: LocalEngine) -> None:
    ids = random_ids(narrow, 60)
    first = open_seq(narrow, 300)
    await extend(first, ids)
    for priority in (AHEAD, BACKGROUND):
        with pytest.raises(Preempted, match="no room yet for `n"):
            await extend(open_seq(narrow, 300, priority=priority), ids)
    second = open_seq(narrow, 300)
    waiting = asyncio.ensure_future(extend(second, ids, answer(8)))
    await on_thread(narrow)
    assert not waiting.done()
    cancelled = open_seq(narrow, 300)
    gone = asyncio.ensure_future(extend(cancelled, ids))
    await on_thread(narrow)
    gone.cancel()
    await cancelled.close()
    await first.close()
    await waiting
    assert await said(second) == generate(narrow, ids, 8)
    assert await on_thread(narrow, lambda: narrow.admission.used) == 0


async def test_what_is_under_way_where_one_gives_way_is_preempted(narrow: LocalEngine) -> None:
    ahead, ready = open_seq(narrow, 300, priority=AHEAD), open_seq(narrow, 300)
    ids = random_ids(narrow, 250)
    lost, done = await at_once(
        narrow, lambda: extend(ahead, ids, settle=False), lambda: extend(ready, ids[:9])
    )
    assert done.segments[0].computed == 9
    assert isinstance(lost, Preempted)


async def test_a_sequence_that_has_become_ready_keeps_its_room(narrow: LocalEngine) -> None:
    ahead, ready = open_seq(narrow, 300, priority=AHEAD), open_seq(narrow, 300)
    await extend(ahead, random_ids(narrow, 20))
    ahead.set_priority(READY)
    waiting = asyncio.ensure_future(extend(ready, random_ids(narrow, 9)))
    await on_thread(narrow)
    assert not waiting.done()
    ahead.set_priority(BACKGROUND)
    await waiting
    with pytest.raises(Preempted, match="gave way"):
        await extend(ahead, random_ids(narrow, 5))
    await ready.close()


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), OutOfMemory("opening a sequence")])
async def test_a_sequence_without_a_buffer_gives_its_room_back(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(capacity: int) -> object:
        raise error

    with monkeypatch.context() as patch:
        memory = replace(limited.core._memory, make=broken)
        patch.setattr(limited.core, "_memory", memory)
        for priority, raised in ((READY, type(error)), (AHEAD, (type(error), Preempted))):
            with pytest.raises(raised):
                await extend(open_seq(limited, 50, priority=priority), [20, 21])
            assert await on_thread(limited, lambda: limited.admission.used) == 0
    seq = open_seq(limited, 50)
    await extend(seq, [20, 21])
