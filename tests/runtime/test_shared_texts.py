"""Texts that several calls read: computed once, realigned by the others, in a run and behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.bases import NOBODY
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.reuse.auto import WINDOW
from kvcomm.reuse.recipe import Realign, Recipe
from tests.runtime.support import (
    GRAPH,
    LEARNED,
    TASK,
    TASKS,
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


def test_readers_behind_the_first_have_its_kv(tiny: LocalEngine) -> None:
    """Those of its level wait for it."""
    result = answered(tiny, ROTATE, ROUNDS)
    steps = steps_of(result)
    first, again = steps.pop("a@1"), steps.pop("a@2")
    assert (first.way, first.reason, first.lender) == ("compute", NOBODY, "")
    assert again.way == "prefix", "it read the task itself in its first round"
    assert {(step.way, step.lender) for step in steps.values()} == {("realign", "a@1")}
    assert {step.reason for step in steps.values()} == {"rotated only; KV from the prompt of a@1"}
    assert result.totals.extra["base"] == 0
    check_at_rest(tiny)


def test_a_later_run_realigns_what_an_earlier_one_has_read(tiny: LocalEngine) -> None:
    """Also in another session and another graph; but of no other namespace."""
    other = chain(agent("x"), Agent("y", prompt="{x}"))
    with session(tiny, ROTATE) as first:
        first.run(GRAPH, TASK)
        again = first.run(chain(agent("p"), agent("q")), TASK)
    later, alien = answered(tiny, ROTATE, other), answered(tiny, ROTATE, other, namespace="other")
    for step in (*steps_of(again).values(), *steps_of(later).values()):
        assert (step.way, step.lender) == ("realign", "a")
    assert steps_of(alien)["x"].reason == NOBODY


@pytest.mark.usefixtures("predictable")
def test_auto_realigns_a_text_that_only_an_earlier_run_has_read(tiny: LocalEngine) -> None:
    single = AgentGraph(
        [agent("a", 40), Agent("b", prompt="{a} and then {extra}")],
        [("a", "b")],
        inputs=["task", "extra"],
    )
    text = "Something that only b reads, in every run, behind another message each time."
    steps = []
    with auto(tiny, **LEARNED) as active:
        for task in TASKS[:6]:
            steps.append(steps_of(active.run(single, task, extra=text), "extra")["b"])
            active.drain()
    assert steps[0].way == "compute"
    assert (steps[-1].way, steps[-1].lender) == ("realign", "b")


@pytest.mark.parametrize(("mode", "options"), [("exact", {}), ("auto", {"target_divergence": 0.0})])
def test_where_nothing_is_realigned_nothing_is_kept(
    tiny: LocalEngine, mode: str, options: dict[str, Any]
) -> None:
    result = answered(tiny, mode, **options)
    assert all(call.report.exact for call in result.calls)
    check_at_rest(tiny)
    assert len(tiny.segments._entries) == 0


@pytest.mark.parametrize("sequences", [1, 2])
def test_room_for_few_sequences_is_enough(
    tiny: LocalEngine, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits for a text gives way to the one that computes it."""
    monkeypatch.setattr(tiny.budget, "limit", sequences * 400 * tiny.slot_bytes)
    assert len(answered(tiny, ROTATE, ROUNDS).calls) == 6
    check_at_rest(tiny)


def test_a_failed_reader_keeps_nobody_waiting(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward fails while others wait for the text: they compute it."""
    steps, failed = tiny.core.steps, []
    finish = steps._finish

    def broken(prompt: Any, events: Any) -> None:
        if not prompt.claims or failed:
            finish(prompt, events)
            return
        failed.append(prompt.seq.call.node)
        steps.drop([prompt], [], RuntimeError("no"))

    monkeypatch.setattr(steps, "_finish", broken)
    graph = ROUNDS.with_agents(lambda a: replace(a, on_error="skip"))
    result = answered(tiny, ROTATE, graph)
    assert {call.node for call in result.calls} == set(graph.nodes) - {*failed}
    ways = {step.way for node, step in steps_of(result).items() if node.endswith("@1")}
    assert ways == {"compute"}
    check_at_rest(tiny)


@pytest.mark.parametrize(
    "care", [{"on_error": "skip"}, {"retries": 1, "backoff_s": 0.001}, {}], ids=str
)
def test_what_was_read_stays_when_its_reader_fails(tiny: LocalEngine, care: dict[str, Any]) -> None:
    graph = chain(agent("a", post=flaky(1), **care), agent("b"), agent("c"))
    if not care:
        with pytest.raises(NodeFailed):
            answered(tiny, ROTATE, graph)
        check_at_rest(tiny)
        graph = chain(agent("b"), agent("c"))
    steps = steps_of(answered(tiny, ROTATE, graph))
    assert {steps[node].lender for node in ("b", "c")} == {"a"}
    check_at_rest(tiny)


def test_offsets_of_texts_that_were_read_before_are_learned_apart(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9) as active:
        runs(active, 1)
    learned = Counter[str]()
    for (family, _, label), model in tiny.offsets.models.items():
        if family == "linear":
            learned[label] += model.samples
    assert learned["task~read"] == 2, "nothing for the first reader"
    assert "task" not in learned


def test_auto_shares_on_its_first_call_and_a_replay_shares_the_same_texts(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    with auto(tiny, runs=tmp_path) as active:
        (first,) = runs(active, 1)
        again = active.run(GRAPH, TASKS[0], replay=first.trace.path / "trace.jsonl")
    assert [call.report.exact for call in first.calls] == [True, False, False]
    assert {audit.level for audit in first.audits if audit.used} == {"10%"}
    for node in ("b", "c"):
        one, other = (steps_of(result)[node] for result in (first, again))
        assert one.lender == other.lender == "a"
        assert one.positions == other.positions
    check_at_rest(tiny)


def test_texts_of_tools_are_shared_by_the_agents_that_read_them(tiny: LocalEngine) -> None:
    steps = steps_of(answered(tiny, ROTATE, READERS), "passage1")
    # Who comes first computes it.
    (first,) = [node for node, step in steps.items() if step.way == "compute"]
    assert {step.lender for step in steps.values()} == {"", first}


def test_what_is_computed_behind_realigned_texts_is_read_behind_the_answer(
    tiny: LocalEngine,
) -> None:
    """So that others can realign it: its own KV was computed from approximate KV."""
    lender = AgentGraph([Agent("a", prompt="Read this.\n\n{known}")], inputs=("known",))
    reader = AgentGraph([Agent("r", prompt="{known}\n\n{new}\n\nGo on.")], inputs=("known", "new"))
    known, news = "Something that is known. " * 9, [f"News of day {n}. " * 6 for n in range(3)]
    with auto(tiny, audit_rate=0.0) as active:
        active.run(lender, known=known)
        first = active.run(reader, known=known, new=news[0])
        active.drain()
        assert steps_of(first, "known")["r"].way == "realign"
        assert [audit.what for audit in first.audits] == ["audit of 10%"]
        ((key, level),) = active.auto.audits
        for _ in range(WINDOW):  # by now `known` was read in two prompts
            active.auto.record(key.replace("borrowed", "mean"), {level: 0.0}, 0, level)
        second = active.run(reader, known=known, new=news[1])
        active.drain()
        assert [audit.what for audit in second.audits] == ["reading of new texts"]
        assert second.audits[0].tokens > 0
        third = active.run(lender, known=news[1])
        assert third.call("a").report.exact or steps_of(third, "known")["a"].way == "realign"
        again = active.run(reader, known=news[1], new=news[2])
    assert steps_of(again, "known")["r"].way == "realign"
    check_at_rest(tiny)
