"""One budget for all KV: it holds, runs go on whatever it is, what does not fit is computed."""

from __future__ import annotations

import asyncio

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.budget import Budget
from kvcomm.engine.segments import NO_ROOM
from kvcomm.graphs import AgentGraph, debate, fully_connected
from tests.runtime.support import TASK, TASKS, agent, answered, check_at_rest, session, steps_of


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


FULL = fully_connected(agent("a", 30), agent("b", 20), agent("c", 10))
DEBATE = debate(agent("a", 18), agent("b", 7), rounds=2, judge=agent("j", exact=True))


@pytest.mark.parametrize(
    ("graph", "slots"), [(FULL, 0), (FULL, 250), (DEBATE, 300), (DEBATE, 450), (DEBATE, 5000)]
)
def test_whatever_the_budget_a_run_goes_on_and_dense_and_exact_say_the_same(
    limited: LocalEngine, graph: AgentGraph, slots: int
) -> None:
    wanted, budget = answered(limited, "dense", graph).answer, limited.budget
    budget.limit = slots * limited.slot_bytes
    for reuse in ("dense", "exact", "kvcomm", "auto"):
        with session(limited, reuse) as active:
            results = [active.run(graph, task) for task in (TASK, *TASKS[:2])]
        if reuse in ("dense", "exact"):
            assert results[0].answer == wanted
        asyncio.run(limited.drain())
        check_at_rest(limited)
        used = budget.sequences() + budget.segments() + budget.offsets() + budget.prefix()
        assert used <= budget.limit
        if reuse == "kvcomm" and not slots:
            for call in results[-1].calls:
                assert all(step.computed == step.tokens and step.reason for step in call.steps)
            assert NO_ROOM in steps_of(results[-1], "a")["b"].reason


def test_offsets_have_a_budget_and_forget_the_oldest_template(limited: LocalEngine) -> None:
    known = []
    with session(limited, "kvcomm") as active:
        for fields in ({}, {"layout": "shared-first"}):
            graph = fully_connected(agent("a", 20, **fields), agent("b", 20, **fields))
            active.run(graph, TASK)
            asyncio.run(limited.drain())  # what was to be learned is learned
            known.append({key[1] for key in limited.offsets.models})
            limited.budget.limit = min(limited.budget.limit, limited.offsets.nbytes * 6)
    assert limited.offsets.nbytes <= limited.budget.for_offsets()
    first, left = known
    assert left
    assert not left >= first
