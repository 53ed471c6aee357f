"""Loans: the first reader of a text computes it, the others have its KV as it was read there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import NOT_LENT
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.message import Handle
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.loan import Loan
from kvcomm.runtime.result import Result
from tests.runtime.support import GRAPH, TASK, agent, auto, session
from tests.runtime.test_tools import READERS

HANDLE = Handle("key", 3, ((0, 3),), exact=True)
ROTATE = Realign(Recipe("rotate"), borrows=True)


def steps_of(result: Result, name: str = "task") -> dict[str, Any]:
    """The step of one placeholder, by node."""
    return {call.node: step for call in result.calls for step in call.steps if step.name == name}


def test_the_first_word_counts() -> None:
    async def go() -> Handle | None:
        loan = Loan("a", [1])
        waiting = asyncio.create_task(loan.given())
        await asyncio.sleep(0)
        assert not waiting.done()
        loan.settle(HANDLE)
        loan.settle(None)
        return await waiting

    assert asyncio.run(go()) is HANDLE


def test_readers_behind_the_first_have_its_kv(tiny: LocalEngine) -> None:
    with session(tiny, ROTATE) as active:
        result = active.run(GRAPH, TASK)
    steps = steps_of(result)
    assert steps["a"].way == "compute"
    assert (steps["a"].reason, steps["a"].lender) == (NOT_LENT, "")
    for node in ("b", "c"):
        assert steps[node].way == "realign"
        assert steps[node].lender == "a"
        assert steps[node].reason == "rotated only; KV from the prompt of a"
    assert result.totals.extra["base"] == 0
    assert not tiny.store.pinned
    assert len(tiny.store) == 0  # nobody else will read it


def test_auto_lends_on_its_first_call(tiny: LocalEngine) -> None:
    with auto(tiny) as active:
        result = active.run(GRAPH, TASK)
    assert [call.report.exact for call in result.calls] == [True, False, False]
    assert steps_of(result)["c"].lender == "a"
    assert {audit.level for audit in result.audits if audit.used} == {"light"}
    assert not tiny.store.pinned


def test_without_a_target_to_spend_nothing_is_lent(tiny: LocalEngine) -> None:
    with auto(tiny, target_divergence=0.0) as active:
        result = active.run(GRAPH, TASK)
    assert all(call.report.exact for call in result.calls)
    assert len(tiny.store) == 0


def test_agents_of_one_level_wait_for_the_first(tiny: LocalEngine) -> None:
    graph = debate(agent("a", 8), agent("b", 8), agent("c", 8), rounds=2)
    with session(tiny, ROTATE) as active:
        result = active.run(graph, TASK)
    steps = steps_of(result)
    assert steps.pop("a@1").way == "compute"
    assert steps.pop("a@2").way == "prefix"  # it read the task itself in its first round
    assert {(step.way, step.lender) for step in steps.values()} == {("realign", "a@1")}


@pytest.mark.parametrize("rows", [1, 2])
def test_room_for_few_rows_is_enough(engine_of: Any, rows: int) -> None:
    """A row that waits for a loan gives way to the one that lends."""
    engine = engine_of("random:llama-tiny", "float64")
    engine.forget()
    graph = debate(agent("a", 8), agent("b", 8), agent("c", 8), rounds=2)
    limit = engine.budget.limit
    engine.budget.limit = rows * 400 * engine.slot_bytes
    try:
        with session(engine, ROTATE) as active:
            result = active.run(graph, TASK)
    finally:
        engine.budget.limit = limit
    assert len(result.calls) == 6
    assert not engine.store.pinned


def broken(name: str, **fields: Any) -> Agent:
    def post(text: str) -> str:
        raise RuntimeError("no")

    return replace(agent(name, **fields), post=post)


def test_what_was_lent_stays_when_the_lender_fails(tiny: LocalEngine) -> None:
    graph = chain(broken("a", on_error="skip"), agent("b"), agent("c"))
    with session(tiny, ROTATE) as active:
        result = active.run(graph, TASK)
    assert {step.lender for step in steps_of(result).values()} == {"a"}
    assert not tiny.store.pinned


def test_a_second_attempt_lends_nothing_twice(tiny: LocalEngine) -> None:
    once = iter([RuntimeError("no")])

    def post(text: str) -> str:
        for error in once:
            raise error
        return text

    graph = chain(replace(agent("a"), post=post, retries=1), agent("b"))
    with session(tiny, ROTATE) as active:
        result = active.run(graph, TASK)
    assert result.call("a").report.attempt == 2
    assert steps_of(result)["b"].lender == "a"
    assert not tiny.store.pinned


def test_who_lends_nothing_keeps_nobody_waiting(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: object, start: int, tokens: int, uses: object) -> None:
        return None

    monkeypatch.setattr("kvcomm.engine.sequence.LocalSequence.lend", nothing)
    with session(tiny, ROTATE) as active, session(tiny, "dense") as dense:
        result, true = active.run(GRAPH, TASK), dense.run(GRAPH, TASK)
    assert {step.reason for step in steps_of(result).values()} == {NOT_LENT}
    assert steps_of(result, "a")["b"].way == "realign"
    assert result.call("a").text == true.call("a").text


def test_a_run_that_fails_lets_go_of_everything(tiny: LocalEngine) -> None:
    graph = chain(broken("a"), agent("b"), agent("c"))
    with session(tiny, ROTATE) as active, pytest.raises(NodeFailed):
        active.run(graph, TASK)
    assert not tiny.store.pinned
    assert len(tiny.store) == 0


def test_offsets_from_lent_kv_are_learned_apart(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9) as active:
        active.run(GRAPH, TASK)
    labels = {label for family, _, label in tiny.offsets.models if family == "linear"}
    assert "task~read" in labels
    assert "task" not in labels
    known = {
        template: model.samples
        for (_, template, label), model in tiny.offsets.models.items()
        if label == "task~read"
    }
    assert sorted(known.values()) == [0, 1, 1]  # nothing for the lender


def test_a_replay_borrows_again(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, runs=tmp_path) as active:
        first = active.run(GRAPH, TASK)
        assert first.trace.path
        again = active.run(GRAPH, TASK, replay=first.trace.path / "trace.jsonl")

    def realigned(result: Result) -> Mapping[str, Any]:
        steps = steps_of(result)
        return {node: (steps[node].lender, steps[node].positions) for node in ("b", "c")}

    assert realigned(again) == realigned(first)
    assert steps_of(again)["c"].lender == "a"
    assert again.answer == first.answer


def test_texts_of_early_tools_are_lent(tiny: LocalEngine) -> None:
    with session(tiny, ROTATE) as active:
        result = active.run(READERS, TASK)
    assert steps_of(result, "passage1")["b"].lender == "a"


def test_texts_that_only_tools_read_are_lent_to_nobody(tiny: LocalEngine) -> None:
    found = Tool("found", lambda texts: "Spiders have eight legs.")
    told = Tool("told", lambda texts: texts["found"].upper())
    graph = AgentGraph(
        [found, told, agent("a"), agent("b")],
        [("found", "told"), ("told", "a"), ("told", "b"), ("a", "b")],
    )
    with session(tiny, ROTATE) as active:
        result = active.run(graph, TASK)
    assert steps_of(result, "told")["b"].lender == "a"
