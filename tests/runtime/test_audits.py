"""Audits: made behind answers, in nobody's way, and never lost without a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcomm.agents import Sampling
from kvcomm.engine.base import BACKGROUND, ShadowEvaluation
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.commands import Compare
from kvcomm.engine.local.core import Core
from kvcomm.engine.local.state import SequenceState
from kvcomm.graphs import fully_connected
from kvcomm.kv import KV
from kvcomm.reuse.auto import ENOUGH
from kvcomm.reuse.plan import MIN_SAMPLES
from kvcomm.runtime import audits
from kvcomm.runtime.call import CallAttempt
from kvcomm.runtime.result import Result
from kvcomm.session import Session
from kvcomm.trace import read_trace
from kvcomm.trace.read import read_ends
from tests.runtime.support import (
    GRAPH,
    LEARNED,
    TASKS,
    Events,
    Held,
    agent,
    auto,
    check_at_rest,
    rest,
    runs,
)

FULL = "not measured: too much waits to be measured already"
pytestmark = pytest.mark.usefixtures("predictable")


def learned(engine: LocalEngine) -> None:
    """Offsets of all placeholders are known, so that the next call is realigned and audited."""
    with auto(engine, **LEARNED) as active:
        runs(active, MIN_SAMPLES)


def measured(result: Result) -> set[str]:
    """The nodes whose realigned calls were audited."""
    return {audit.node for audit in result.audits if audit.used and not audit.error}


# --- behind the answer ---

WAYS: dict[str, Callable[[Session], object]] = {
    "drain": lambda active: active.drain(),
    "close": lambda active: active.close(),
    "with": lambda active: active.__exit__(None, None, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_returns_when_it_has_answered(
    tiny: LocalEngine, held: Held, way: str, tmp_path: Path
) -> None:
    """No sequence waits for the audit either: all memory is free. `drain` and `close` finish it."""
    held.go.set()
    learned(tiny)
    held.go.clear()
    active, events = auto(tiny, **LEARNED, runs=tmp_path), Events()
    active._listeners = (events,)
    result = active.run(GRAPH, TASKS[9])
    assert result.answer
    assert not result.call("c").report.exact
    assert (result.audits, active.auditing) == ([], 2)
    assert events.all[-1].kind == "end"
    rest(tiny)
    assert tiny.admission.used == 0
    # Messages whose KV the audits read are kept.
    assert any(entry.refs for entry in tiny.segments._entries.values())
    held.go.set()
    WAYS[way](active)
    assert active.auditing == 0
    assert measured(result) == {"b", "c"}
    assert [event.kind for event in events.all].index("end") < len(events.all) - 1
    check_at_rest(tiny)


async def test_a_session_in_an_event_loop_is_drained_there(tiny: LocalEngine) -> None:
    active = auto(tiny, **LEARNED)
    for task in TASKS[: MIN_SAMPLES + 1]:
        result = await active.arun(GRAPH, task)
        await active.adrain()
    assert measured(result) == {"b", "c"}


def test_audits_stand_behind_the_end_of_a_trace(
    tiny: LocalEngine, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    with auto(tiny, **LEARNED, runs=tmp_path / "runs") as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    assert result.trace.path
    trace = read_trace(result.trace.path / "trace.jsonl")
    kinds = [event.kind for event in trace.events]
    assert kinds[kinds.index("end") + 1 :] == ["audit"] * len(result.audits) != []
    assert trace.audits() == result.audits
    assert trace.finished is not None
    # What they cost is known only behind the end.
    assert result.totals.extra["audit"] == 0
    spent = sum(audit.tokens for audit in result.audits)
    assert trace.finished.totals.extra["audit"] == spent > 0
    assert read_ends(trace.path).finished is not None
    shown = cli("trace", "show", str(result.trace.path))
    assert shown.code == 0
    assert "2 realigned calls: mean divergence" in shown.out
    listed = json.loads(cli("trace", "list", "--runs", str(tmp_path / "runs"), "--json").out)
    assert {run["status"] for run in listed["runs"]} == {"ok"}


def test_no_more_audits_wait_than_may(
    tiny: LocalEngine, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "WAITING", 2)
    held.go.set()
    learned(tiny)
    held.go.clear()
    active = auto(tiny, **LEARNED)
    results = [active.run(GRAPH, task) for task in TASKS[9:11]]
    refused = [audit for result in results for audit in result.audits]
    assert {audit.error for audit in refused} == {FULL}
    assert active.auditing == 2
    held.go.set()
    active.drain()
    assert [len(measured(result)) for result in results] == [2, 0]
    active.close()
    check_at_rest(tiny)


def test_a_call_whose_messages_cannot_all_be_kept_is_not_measured(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain, left = tiny.retain, iter([True])
    monkeypatch.setattr(tiny, "retain", lambda handle: next(left, False) and retain(handle))
    with auto(tiny) as active:
        result = active.run(fully_connected(*map(agent, "abc")), TASKS[0])
        active.drain()
    assert FULL in {audit.error for audit in result.audits if audit.node == "c"}
    check_at_rest(tiny)


@pytest.mark.parametrize("where", ["evaluate", "compare", "answer"])
def test_an_audit_that_fails_is_recorded_and_harms_nobody(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    learned(tiny)

    async def broken(*_: object, **__: object) -> ShadowEvaluation:
        raise RuntimeError("not today")

    def compare(self: Core, command: Compare) -> None:
        raise RuntimeError("not today")

    sample = tiny.core.steps._sample

    def answer(seq: SequenceState, *rest: Any) -> None:
        if seq.priority == BACKGROUND:
            tiny.core.steps.drop([], [seq], RuntimeError("not today"))
        else:
            sample(seq, *rest)

    with auto(tiny, **LEARNED) as active, monkeypatch.context() as patch:
        if where == "evaluate":
            patch.setattr(tiny, "evaluate", broken)
        elif where == "compare":
            patch.setattr(Core, "_compare", compare)
        else:
            patch.setattr(tiny.core.steps, "_sample", answer)
        result = active.run(GRAPH, TASKS[9])
        active.drain()
        assert {a.error for a in result.audits if a.node == "b"} == {"RuntimeError: not today"}
        check_at_rest(tiny)
        patch.undo()
        again = active.run(GRAPH, TASKS[10])
        active.drain()
    assert measured(again) == {"b", "c"}


# --- what is measured ---


def test_probes_measure_levels_beside_exact_calls(tiny: LocalEngine) -> None:
    """Also of an agent that samples: along the greedy answer."""
    hot = Sampling(max_tokens=12, temperature=1.0)
    sampled = GRAPH.with_agents(lambda a: replace(a, sampling=replace(hot, max_tokens=30)))
    for name, graph in {"greedy": GRAPH, "hot": sampled}.items():
        with auto(tiny, prior=1e9, target_divergence=1e-9, namespace=name) as active:
            results = runs(active, MIN_SAMPLES + 3, graph)
        result = next(r for r in results if any(a.node == "b" for a in r.audits))
        probes = [a for a in result.audits if a.node == "b"]
        assert [a.level for a in probes] == ["10%", "20%", "50%"]
        assert not any(a.used or a.error for a in probes)
        assert all(a.divergence is not None and a.divergence > 0 for a in probes)
        # The first one counts the dense prompt and its answer.
        assert probes[0].tokens > probes[1].tokens
        assert all(call.report.exact for call in result.calls)
        assert "no bound ≤ 1e-09" in result.call("b").report.gate


def test_realigned_calls_are_audited_until_some_are_known_then_at_the_rate(
    tiny: LocalEngine,
) -> None:
    with auto(tiny, **LEARNED, audit_rate=0.0) as active:
        results = runs(active, 14)
    counts = [sum(a.used for a in result.audits if a.node == "b") for result in results]
    # From 8 samples on, four audits were made with at least half of what is known now.
    assert counts == [0] * MIN_SAMPLES + [1] * (2 * ENOUGH - MIN_SAMPLES) + [0] * (14 - 2 * ENOUGH)
    audit = next(a for a in results[MIN_SAMPLES].audits if a.node == "b")
    assert audit.bound == LEARNED["prior"] / 2


def test_an_audit_compares_the_prompt_that_was_delivered(
    tiny: LocalEngine, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan is replayed with the offset models of that moment, whatever they learned since."""
    held.go.set()
    learned(tiny)
    held.go.clear()
    delivered: dict[str, KV] = {}
    compared: dict[str, list[KV]] = {"b": [], "c": []}
    end, compare = Core.end, Core._compare

    def kv(seq: SequenceState) -> KV:
        return seq.position_free(range(seq.prompt))

    def spied(self: Core, seq: SequenceState, *why: Any) -> None:
        if seq.answering and not seq.ended and seq.priority != BACKGROUND:
            delivered[seq.call.node] = kv(seq)
        end(self, seq, *why)

    def spy(self: Core, command: Compare) -> None:
        compared[command.seq.call.node].append(kv(command.seq))
        compare(self, command)

    monkeypatch.setattr(Core, "end", spied)
    monkeypatch.setattr(Core, "_compare", spy)
    active = auto(tiny, **LEARNED)
    result = active.run(GRAPH, TASKS[9])

    def teach() -> None:
        for model in tiny.offsets.models.values():
            base, noise = delivered["b"], torch.randn_like(delivered["b"].keys)
            model.observe(base, KV(noise, noise.clone()), base.slice(0, 0))

    tiny.core.call(teach).result()
    held.go.set()
    active.close()
    for node in ("b", "c"):
        assert not result.call(node).report.exact
        mine, replayed = delivered[node], compared[node][0]
        assert torch.allclose(mine.keys, replayed.keys, rtol=0, atol=1e-12)
        assert torch.allclose(mine.values, replayed.values, rtol=0, atol=1e-12)


# --- before the first token ---


def test_a_realigned_reader_asks_the_engine_twice_before_its_first_token(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(tiny)
    asked: dict[str, int] = {}
    submit, ready, emit = tiny.core.submit, CallAttempt._ready, CallAttempt._emit

    def counting(command: Any) -> Any:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None and task.get_name() in asked:
            asked[task.get_name()] += 1
        return submit(command)

    def complete(self: CallAttempt, *deadline: Any) -> None:
        asked[self.plan.node.name] = 0
        ready(self, *deadline)

    def first(self: CallAttempt, token: int) -> None:
        if (count := asked.pop(self.plan.node.name, None)) is not None:
            found[self.plan.node.name] = count
        emit(self, token)

    found: dict[str, int] = {}
    monkeypatch.setattr(tiny.core, "submit", counting)
    monkeypatch.setattr(CallAttempt, "_ready", complete)
    monkeypatch.setattr(CallAttempt, "_emit", first)
    with auto(tiny, **LEARNED) as active:
        result = active.run(GRAPH, TASKS[9])
    assert result.call("c").total("realigned") > 0
    assert set(found) == {"a", "b", "c"}
    assert all(0 < count <= 2 for count in found.values())
