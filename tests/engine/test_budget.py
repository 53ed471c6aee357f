"""One budget for all KV: it holds, runs go on whatever it is, what does not fit is computed."""

from __future__ import annotations

import asyncio

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.budget import Budget
from kvcomm.engine.segments import NO_ROOM
from kvcomm.graphs import debate, fully_connected
from tests.runtime.support import GRAPH, TASK, TASKS, agent, session

GRAPHS = {
    "chain": GRAPH,
    "full": fully_connected(agent("a", 30), agent("b", 20), agent("c", 10)),
    "debate": debate(agent("a", 18), agent("b", 7), rounds=2, judge=agent("j", exact=True)),
}


def test_rows_come_first_and_caches_have_what_they_leave() -> None:
    budget = Budget(800)
    assert (budget.for_sequences(), budget.for_segments(), budget.for_offsets()) == (800, 100, 200)
    assert budget.for_prefix() == 40
    budget.sequences = lambda: 750
    assert (budget.for_segments(), budget.for_offsets(), budget.for_prefix()) == (50, 50, 40)
    budget.segments = lambda: 40
    assert (budget.for_offsets(), budget.for_prefix()) == (10, 10)
    budget.offsets = lambda: 10
    assert budget.for_prefix() == 0
    assert not budget.short
    budget.prefix = lambda: 1
    assert budget.short
    budget.retained = lambda: 30
    assert budget.for_sequences() == 770


def used(engine: LocalEngine) -> int:
    budget = engine.budget
    return budget.sequences() + budget.segments() + budget.offsets() + budget.prefix()


SLOTS = (150, 200, 250, 300, 350, 450, 600)


@pytest.mark.parametrize(
    ("graph", "slots"),
    [
        ("full", 0),
        ("chain", 400),
        ("full", 250),
        ("debate", 300),
        ("debate", 450),
        ("debate", 5000),
        *[
            pytest.param(graph, slots, marks=pytest.mark.slow)
            for graph in GRAPHS
            for slots in SLOTS
        ],
    ],
)
def test_whatever_the_budget_a_run_goes_on_and_dense_and_exact_say_the_same(
    limited: LocalEngine, graph: str, slots: int
) -> None:
    with session(limited, "dense") as active:
        wanted = active.run(GRAPHS[graph], TASK)
    limited.budget.limit = slots * limited.slot_bytes
    for reuse in ("dense", "exact", "kvcomm", "auto"):
        with session(limited, reuse) as active:
            results = [active.run(GRAPHS[graph], task) for task in (TASK, *TASKS[:2])]
        if reuse in ("dense", "exact"):
            assert results[0].answer == wanted.answer
        asyncio.run(limited.drain())
        assert limited.admission.used == 0
        assert not any(entry.refs for entry in limited.segments._entries.values())
        assert used(limited) <= limited.budget.limit


def test_a_message_without_room_is_computed_by_its_reader(
    limited: LocalEngine,
) -> None:
    graph = GRAPHS["full"]
    with session(limited, "kvcomm") as active:
        active.run(graph, TASK)
        limited.budget.limit = 0
        result = active.run(graph, TASKS[1])
    for call in result.calls:
        assert all(step.computed == step.tokens and step.reason for step in call.steps)
    read = next(step for step in result.call("b").steps if step.name == "a")
    assert NO_ROOM in read.reason


def test_offsets_have_a_budget_and_forget_the_template_asked_least_recently(
    limited: LocalEngine,
) -> None:
    first, second = (
        fully_connected(agent("a", 20, **more), agent("b", 20, **more))
        for more in ({}, {"layout": "shared-first"})
    )
    with session(limited, "kvcomm") as active:
        active.run(first, TASK)
        asyncio.run(limited.drain())  # what was to be learned is learned
        known = {key[1] for key in limited.offsets.models}
        one = limited.offsets.nbytes
        limited.budget.limit = int(one * 1.5) * 4
        active.run(second, TASK)
    asyncio.run(limited.drain())
    assert limited.offsets.nbytes <= limited.budget.for_offsets()
    left = {key[1] for key in limited.offsets.models}
    assert left
    assert not left >= known
