"""`exact` says what `dense` says: any graph, any budget, whatever runs beside it."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import AgentGraph, random_dag
from kvcomm.runtime.result import Result
from tests.robust.fuzzing import fuzzed
from tests.runtime.support import agent, check_at_rest, session


@pytest.fixture
def limited(tiny: LocalEngine) -> Iterator[LocalEngine]:
    """The tiny engine, in float64; its budget may be changed."""
    limit = tiny.budget.limit
    yield tiny
    tiny.budget.limit = limit


@st.composite
def graphs(draw: st.DrawFn) -> AgentGraph:
    """Up to 12 agents, any edges forward, every layout and some exact agents."""
    sizes = draw(st.lists(st.integers(1, 24), min_size=1, max_size=12))
    members = [
        agent(
            f"n{number}",
            tokens,
            layout=draw(st.sampled_from(["role-first", "shared-first"])),
            exact=draw(st.booleans()),
        )
        for number, tokens in enumerate(sizes)
    ]
    return random_dag(*members, density=draw(st.floats(0, 1)), seed=draw(st.integers(0, 999)))


def texts(result: Result) -> dict[str, str]:
    return {call.node: call.text for call in result.calls}


def check(limited: LocalEngine, graph: AgentGraph, tasks: list[str], slots: int | None) -> None:
    engine = limited
    engine.forget()
    whole = engine.budget.limit
    with session(engine, "dense") as active:
        wanted = [texts(active.run(graph, task)) for task in tasks]
    if slots is not None:
        engine.budget.limit = slots * engine.slot_bytes

    async def together() -> list[dict[str, str]]:
        active = session(engine, "exact")
        other = session(engine, "kvcomm", namespace="other")
        runs = [active.arun(graph, task) for task in tasks]
        beside = [other.arun(graph, task) for task in tasks]  # approximate, on the same engine
        found = await asyncio.gather(*runs, *beside)
        return [texts(result) for result in found[: len(tasks)]]

    try:
        assert asyncio.run(together()) == wanted
        assert asyncio.run(together()) == wanted, "with what is cached by now"
    finally:
        engine.budget.limit = whole
    check_at_rest(engine)


TASKS = st.lists(st.sampled_from(["Add 2 and 3.", "Why?", "Name a bird."]), min_size=1, max_size=2)
test_on_random_graphs, test_on_many_random_graphs = fuzzed(
    check,
    few=25,
    many=200,
    timeout=1800,
    graph=graphs(),
    tasks=TASKS,
    slots=st.none() | st.integers(0, 3000),
)
