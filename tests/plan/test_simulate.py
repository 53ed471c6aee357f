"""The simulation: hand calculations, conservation, order, memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.plan.memory import Memory
from kvcomm.plan.replica import READY, Replica, Row
from kvcomm.plan.replica import Work as Queued
from kvcomm.plan.simulate import Estimate, Fleet, estimate
from kvcomm.plan.workload import Piece, ToolUse, Work
from tests.plan.works import SIMPLE, call, chains, graphs, work

MODES = st.sampled_from(["dense", "exact"])


def one(done: Work, mode: str, **fleet: float) -> Estimate:
    return estimate(done, mode, Fleet(SIMPLE, **fleet))  # type: ignore[arg-type]


def test_a_chain_alone_takes_what_a_hand_calculation_says() -> None:
    first = call("first", sampled=5)  # 110 tokens; its fifth token needs no forward
    second = call("second", [first], sampled=3)  # 115 tokens
    found = one(work(first, second), "dense")
    (graph,) = found.graphs
    assert graph.calls["first"].finished_at == pytest.approx(0.110 + 4 * 0.1)
    assert graph.calls["second"].ready_at == pytest.approx(0.510)
    assert graph.calls["second"].ttft_s == pytest.approx(0.115)
    assert graph.ended == pytest.approx(0.510 + 0.115 + 2 * 0.1)
    assert found.peak_bytes == (115 + 3) * SIMPLE.kv_bytes
    assert found.busy == pytest.approx(1)


def test_exact_keeps_for_the_end_what_came_last() -> None:
    """The message's 40 tokens are followed in chunks of 16: 8 are left, and 10 behind them."""
    first = call("first", sampled=40)
    found = one(work(first, call("second", [first])), "exact")
    second = found.graphs[0].calls["second"]
    assert second.ttft_s == pytest.approx(0.018)
    assert second.computed == second.prompt == 150


def test_a_realigned_call_computes_what_the_trace_did() -> None:
    first = call("first", sampled=40)
    second = call("second", [first])
    pieces = (second.pieces[0], replace(second.pieces[1], computed=0), second.pieces[2])
    second = replace(second, pieces=pieces, way="realigned", realign_s=0.5, base=30)
    traced = replace(work(first, second), mode="kvcomm")
    found = one(traced, "kvcomm").graphs[0].calls["second"]
    assert (found.computed, found.realigned) == (110, 40)
    assert found.ttft_s == pytest.approx(0.5 + 0.010)
    quick = estimate(traced, "kvcomm", Fleet(SIMPLE.model_copy(update={"realign_s": 0.001})))
    assert quick.graphs[0].calls["second"].ttft_s == pytest.approx(0.040 + 0.010)


def test_rows_that_decode_share_their_steps() -> None:
    """The first is alone for its prompt, the second's enters beside a token of the first."""
    both = work(call("one", sampled=11), call("two", sampled=11))
    assert one(both, "dense").seconds == pytest.approx(0.110 + (0.1 + 0.110) + 10 * 0.1)


def test_beside_decoding_rows_chunks_are_short() -> None:
    """4,096 tokens take 16 steps of 256, each of them with a token of the row that decodes."""
    short, long = call("short", prompt=10, sampled=40), call("long", prompt=4086, sampled=1)
    found = one(work(short, long), "dense").graphs[0].calls
    assert found["short"].first_at == pytest.approx(0.020)
    assert found["long"].first_at == pytest.approx(0.020 + 16 * 0.1 + 4.096)


def test_a_tool_takes_its_time_and_its_readers_hear_it() -> None:
    reader = call("reader")
    pieces = (reader.pieces[0], Piece(7, 7, literal=False, sender="text"), reader.pieces[1])
    reader = replace(reader, pieces=pieces)
    graph = replace(
        work(reader),
        tools={"tool": ToolUse("tool", (), {"text": 7}, 2.5)},
        early=frozenset({"text"}),
    )
    for mode in ("dense", "exact"):
        assert one(graph, mode).graphs[0].calls["reader"].first_at == pytest.approx(2.5 + 0.117)


def test_a_prefix_is_computed_once() -> None:
    first, second = call("first"), call("second")
    both = work(first, second)
    both = replace(both, shared={**both.shared, ("second", "first"): 60, ("first", "second"): 60})
    found = one(both, "exact").graphs[0].calls
    assert (found["first"].prefix, found["second"].prefix) == (0, 60)
    dense = one(both, "dense").graphs[0].calls
    assert dense["second"].computed == 110


@pytest.mark.parametrize(("common", "expected"), [(60, [0, 60]), (15, [0, 0])])
def test_rows_of_one_step_compute_their_beginning_once(common: int, expected: list[int]) -> None:
    env = simpy.Environment()
    shared = {("a", "b"): common, ("b", "a"): common}
    memory = Memory(env, SIMPLE.memory, SIMPLE.kv_bytes, shared, {})
    replica = Replica(env, SIMPLE, memory)
    works = []
    for name in ("a", "b"):
        row = Row((0, name), 100, READY, length=100)
        settle = partial(memory.settle, row)
        queued = Queued(row, 0, 100, 100, env.event(), adopts=True, done=settle)
        works.append(queued)
        replica.compute(queued)
    env.run(env.all_of([queued.finished for queued in works]))
    assert [queued.prefix for queued in works] == expected
    assert replica.computed == 200 - sum(expected)


def test_graphs_share_literals_only_and_only_on_a_replica() -> None:
    graph = work(call("only", prompt=64, tail=0))
    shared = one(graph, "exact", graphs=2)
    # The last token of a prompt is always computed.
    assert [run.calls["only"].prefix for run in shared.graphs] == [0, 63]
    apart = one(graph, "exact", graphs=2, concurrent=2, replicas=2)
    assert [run.calls["only"].prefix for run in apart.graphs] == [0, 0]


def test_rows_wait_for_room_in_their_order() -> None:
    graph = work(call("only", sampled=5))
    tight = one(graph, "dense", graphs=3, concurrent=3, kv_memory=115 * SIMPLE.kv_bytes)
    assert [run.ended for run in tight.graphs] == pytest.approx([0.51, 1.02, 1.53])
    assert tight.peak_bytes == 115 * SIMPLE.kv_bytes
    assert one(graph, "dense", graphs=3, concurrent=3).seconds < 0.9


def test_a_row_ahead_gives_way_and_starts_again() -> None:
    """The reader's row is open while `late` waits for a tool; then there is room for one only."""
    first = call("first", sampled=30)
    reader = call("reader", [first])
    late = call("late", sampled=1)
    pieces = (Piece(1, 1, literal=False, sender="text"), *late.pieces)
    late = replace(late, pieces=pieces)
    graph = replace(
        work(first, late, reader),
        tools={"tool": ToolUse("tool", (), {"text": 1}, 1.0)},
        early=frozenset({"text"}),
    )
    rows = sum(c.prompt + c.limit for c in (first, reader))
    found = one(graph, "exact", kv_memory=(rows + 10) * SIMPLE.kv_bytes)
    calls = found.graphs[0].calls
    assert calls["late"].first_at < calls["first"].finished_at
    assert calls["reader"].redone >= 100
    assert calls["reader"].computed == reader.prompt
    assert found.peak_bytes <= (rows + 10) * SIMPLE.kv_bytes


@settings(deadline=None, max_examples=60)
@given(graphs(), MODES, st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))
def test_every_token_is_simulated_once(
    graph: Work, mode: str, replicas: int, concurrent: int, count: int
) -> None:
    found = estimate(graph, mode, Fleet(SIMPLE, replicas, concurrent, count))
    assert len(found.graphs) == count
    calls = [c for run in found.graphs for c in run.calls.values()]
    for done in calls:
        assert done.computed + done.prefix == done.prompt == graph.calls[done.node].prompt
        assert done.sampled == graph.calls[done.node].sampled
        assert done.ready_at < done.first_at <= done.finished_at
    assert found.computed == sum(done.computed for done in calls)
    assert found.busy <= 1 + 1e-9


@settings(deadline=None, max_examples=60)
@given(graphs(), MODES, st.integers(1, 4), st.floats(0.1, 3))
def test_a_run_goes_on_in_any_memory(graph: Work, mode: str, count: int, rows: float) -> None:
    """With less than a row of room too, and never more in use than there is, or one row."""
    largest = max(c.prompt + c.limit for c in graph.calls.values()) * SIMPLE.kv_bytes
    fleet = Fleet(SIMPLE, 1, count, count, kv_memory=largest * rows)
    found = estimate(graph, mode, fleet)
    assert len(found.graphs) == count
    assert found.peak_bytes <= max(largest, largest * rows) + 1e-6


@settings(deadline=None, max_examples=60)
@given(chains(), st.integers(2, 4))
def test_more_replicas_are_never_slower(graph: Work, count: int) -> None:
    took = [
        one(graph, "dense", graphs=count, concurrent=count, replicas=n + 1).seconds
        for n in range(count)
    ]
    assert all(more <= less + 1e-9 for less, more in itertools.pairwise(took))


@settings(deadline=None, max_examples=40)
@given(chains())
def test_exact_is_sooner_and_dense_is_the_sum(graph: Work) -> None:
    dense, exact = (one(graph, mode).graphs[0].calls for mode in ("dense", "exact"))
    for done in dense.values():
        assert done.ttft_s == pytest.approx(done.prompt * 0.001)
    last = graph.answer
    # A chunk that was begun when the last input came may still be on its way.
    assert exact[last].ttft_s <= dense[last].ttft_s + 1e-9
