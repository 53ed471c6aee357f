"""Texts that several calls read: computed once, realigned by the others, in a run and behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.bases import NOBODY
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.result import Result
from tests.runtime.support import (
    GRAPH,
    LEARNED,
    TASK,
    agent,
    answered,
    auto,
    check_at_rest,
    flaky,
    runs,
    session,
    steps_of,
)
from tests.runtime.test_tools import READERS

ROTATE = Realign(Recipe("rotate"), borrows=True)
ROUNDS = debate(agent("a", 8), agent("b", 8), agent("c", 8), rounds=2)


@pytest.fixture
def limited(tiny: LocalEngine) -> Iterator[LocalEngine]:
    """The tiny engine; its budget may be changed."""
    limit = tiny.budget.limit
    yield tiny
    tiny.budget.limit = limit


def test_readers_behind_the_first_have_its_kv(tiny: LocalEngine) -> None:
    result = answered(tiny, ROTATE, GRAPH)
    steps = steps_of(result)
    assert (steps["a"].way, steps["a"].reason, steps["a"].lender) == ("compute", NOBODY, "")
    for node in ("b", "c"):
        assert steps[node].way == "realign"
        assert steps[node].lender == "a"
        assert steps[node].reason == "rotated only; KV from the prompt of a"
    assert result.totals.extra["base"] == 0
    check_at_rest(tiny)


def test_a_later_run_realigns_what_an_earlier_one_has_read(tiny: LocalEngine) -> None:
    """Also in another session and another graph; but of no other namespace."""
    other = chain(agent("x"), Agent("y", prompt="{x}"))
    with session(tiny, ROTATE) as first:
        first.run(GRAPH, TASK)
        again = first.run(chain(agent("p"), agent("q")), TASK)
    with session(tiny, ROTATE) as second, session(tiny, ROTATE, namespace="other") as apart:
        later, alien = second.run(other, TASK), apart.run(other, TASK)
    for step in (*steps_of(again).values(), *steps_of(later).values()):
        assert (step.way, step.lender) == ("realign", "a")
        assert step.reason == "rotated only; KV from the prompt of a"
    assert steps_of(alien)["x"].reason == NOBODY


@pytest.mark.usefixtures("predictable")
def test_auto_realigns_a_text_that_only_an_earlier_run_has_read(tiny: LocalEngine) -> None:
    single = AgentGraph(
        [agent("a", 40), Agent("b", prompt="{a} and then {extra}")],
        [("a", "b")],
        inputs=["task", "extra"],
    )
    text = "Something that only b reads, in every run, behind another message each time."
    with auto(tiny, **LEARNED) as active:
        results = []
        for number in range(6):
            results.append(active.run(single, f"{TASK} {number}", extra=text))
            active.drain()
    first, last = (steps_of(result, "extra")["b"] for result in (results[0], results[-1]))
    assert first.way == "compute"
    assert (last.way, last.lender) == ("realign", "b")


def test_auto_shares_on_its_first_call(tiny: LocalEngine) -> None:
    with auto(tiny) as active:
        (result,) = runs(active, 1)
    assert [call.report.exact for call in result.calls] == [True, False, False]
    assert steps_of(result)["c"].lender == "a"
    assert {audit.level for audit in result.audits if audit.used} == {"light"}
    check_at_rest(tiny)


@pytest.mark.parametrize("options", [{"reuse": "exact"}, {"target_divergence": 0.0}])
def test_where_nothing_is_realigned_nothing_is_kept(
    tiny: LocalEngine, options: dict[str, Any]
) -> None:
    with session(tiny, **{"reuse": "auto", **options}) as active:
        result = active.run(GRAPH, TASK)
    assert all(call.report.exact for call in result.calls)
    check_at_rest(tiny)
    assert len(tiny.segments._entries) == 0


def test_agents_of_one_level_wait_for_the_first(tiny: LocalEngine) -> None:
    result = answered(tiny, ROTATE, ROUNDS)
    steps = steps_of(result)
    assert steps.pop("a@1").way == "compute"
    assert steps.pop("a@2").way == "prefix"  # it read the task itself in its first round
    assert {(step.way, step.lender) for step in steps.values()} == {("realign", "a@1")}


@pytest.mark.parametrize("sequences", [1, 2])
def test_room_for_few_sequences_is_enough(limited: LocalEngine, sequences: int) -> None:
    """One that waits for a text gives way to the one that computes it."""
    limited.budget.limit = sequences * 400 * limited.slot_bytes
    with session(limited, ROTATE) as active:
        assert len(active.run(ROUNDS, TASK).calls) == 6
    check_at_rest(limited)


def test_a_reader_that_fails_keeps_nobody_waiting(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward fails while others wait for the text: they compute it."""
    finish, failed = tiny.core.steps._finish, []

    def broken(prompt: Any, events: Any) -> None:
        if prompt.claims and not failed:
            failed.append(prompt.seq.call.node)
            tiny.core.steps.drop([prompt], [], RuntimeError("no"))
        else:
            finish(prompt, events)

    monkeypatch.setattr(tiny.core.steps, "_finish", broken)
    graph = ROUNDS.with_agents(lambda a: replace(a, on_error="skip"))
    result = answered(tiny, ROTATE, graph)
    (lost,) = failed
    assert {call.node for call in result.calls} == set(graph.nodes) - {lost}
    steps = steps_of(result)
    assert {steps[node].way for node in ("a@1", "b@1", "c@1") if node != lost} == {"compute"}
    check_at_rest(tiny)


@pytest.mark.parametrize(
    "care", [{"on_error": "skip"}, {"retries": 1, "backoff_s": 0.001}, {}], ids=str
)
def test_what_was_read_stays_when_its_reader_fails_behind_it(
    tiny: LocalEngine, care: dict[str, Any]
) -> None:
    graph = chain(agent("a", post=flaky(1), **care), agent("b"), agent("c"))
    with session(tiny, ROTATE) as active:
        if care:
            result = active.run(graph, TASK)
        else:
            with pytest.raises(NodeFailed):
                active.run(graph, TASK)
            check_at_rest(tiny)
            result = active.run(chain(agent("b"), agent("c")), TASK)
    steps = steps_of(result)
    assert {steps[node].lender for node in ("b", "c")} == {"a"}
    check_at_rest(tiny)


def test_offsets_of_texts_that_were_read_before_are_learned_apart(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9) as active:
        runs(active, 1)
    models = {key: model.samples for key, model in tiny.offsets.models.items()}
    labels = {label for family, _, label in models if family == "linear"}
    assert "task~read" in labels
    assert "task" not in labels
    # Nothing for the first reader.
    assert sum(n for (_, _, label), n in models.items() if label == "task~read") == 2


def test_a_replay_realigns_the_same_texts(tiny: LocalEngine, tmp_path: Path) -> None:
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


def test_texts_of_tools_are_shared_by_the_agents_that_read_them(tiny: LocalEngine) -> None:
    found = Tool("found", lambda texts: "Spiders have eight legs.")
    told = Tool("told", lambda texts: texts["found"].upper())
    graph = AgentGraph(
        [found, told, agent("a"), agent("b")],
        [("found", "told"), ("told", "a"), ("told", "b"), ("a", "b")],
    )
    for team, name in ((READERS, "passage1"), (graph, "told")):
        with session(tiny, ROTATE, namespace=name) as active:
            steps = steps_of(active.run(team, TASK), name)
            # Who comes first computes it.
            (first,) = [node for node, step in steps.items() if step.way == "compute"]
            assert {step.lender for step in steps.values()} == {"", first}
