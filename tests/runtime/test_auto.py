"""auto in a session: exact at first, realigned where measured, audited behind the answers."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.engine.base import BACKGROUND, Divergence, EngineSequence, Token
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import NOT_LENT
from kvcomm.engine.sequence import LocalSequence
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph, chain, fully_connected
from kvcomm.prompt import Segment
from kvcomm.reuse.auto import ENOUGH, SHARES
from kvcomm.reuse.offsets.linear import MIN_SAMPLES
from kvcomm.runtime import audit as auditing
from kvcomm.runtime.audit import Auditor, Finished
from tests.runtime.support import GRAPH, TASK, TASKS, Events, agent, auto, runs, session
from tests.support import TINY

# Rotating alone would err too much, learned offsets do not.
LEARNED = {"prior": 60.0, "target_divergence": 100.0}
pytestmark = pytest.mark.usefixtures("predictable")


def test_nothing_is_realigned_before_enough_was_learned(tiny: LocalEngine) -> None:
    with auto(tiny, **LEARNED) as active:
        results = runs(active, MIN_SAMPLES + 2)
    for result in results[:MIN_SAMPLES]:
        assert all(call.report.exact for call in result.calls)
        assert not any(audit.used for audit in result.audits)
        assert "too little learned" in result.call("b").report.gate
    late = results[-1].call("b").report
    assert late.gate.startswith("auto: light, bound")
    assert not late.exact


def test_exact_calls_of_auto_say_what_dense_says(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9) as active, session(tiny, "dense") as dense:
        for task in TASKS[:8]:
            mine, true = active.run(GRAPH, task), dense.run(GRAPH, task)
            assert {c.node: c.text for c in mine.calls} == {c.node: c.text for c in true.calls}


def test_probes_measure_every_level_beside_exact_calls(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9, target_divergence=1e-9) as active:
        results = runs(active, MIN_SAMPLES + 1)
        probes = [a for a in results[-1].audits if a.node == "b"]
        assert [a.level for a in probes] == [name for name, *_ in SHARES]  # no text is long
        assert not any(a.used or a.error for a in probes)
        assert all(a.divergence is not None and a.divergence > 0 for a in probes)
        assert all(call.report.exact for call in results[-1].calls)
        assert results[-1].totals.extra["audit"] == sum(a.tokens for a in results[-1].audits) > 0
        assert "no bound ≤ 1e-09" in results[-1].call("b").report.gate


def test_probes_of_a_sampling_agent_are_measured_along_the_greedy_answer(
    tiny: LocalEngine,
) -> None:
    hot = Sampling(max_tokens=12, temperature=1.0)
    sampled = chain(agent("a", 30), agent("b")).with_agents(lambda a: replace(a, sampling=hot))
    with auto(tiny, prior=1e9, target_divergence=1e-9) as active:
        results = runs(active, MIN_SAMPLES + 2, sampled)
    probes = [a for result in results for a in result.audits if a.node == "b"]
    assert probes
    assert not any(a.error for a in probes)
    # A shadow had to answer: it costs the first probe of a call more than the others.
    assert probes[0].tokens > probes[1].tokens


def test_realigned_calls_are_audited_until_five_then_at_the_rate(tiny: LocalEngine) -> None:
    with auto(tiny, **LEARNED, audit_rate=0.0) as active:
        results = runs(active, 14)
    counts = [sum(a.used for a in result.audits if a.node == "b") for result in results]
    # From 10 samples on, five audits were made with at least half of what is known now.
    assert counts == [0] * MIN_SAMPLES + [1] * (2 * ENOUGH - MIN_SAMPLES) + [0] * 4
    audit = next(a for a in results[MIN_SAMPLES].audits if a.node == "b")
    assert audit.divergence is not None
    assert audit.bound == LEARNED["prior"] / 2
    assert audit.tokens > 0


def test_an_audit_is_the_divergence_of_the_delivered_row(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, bool, Divergence]] = []
    compare = LocalSequence.compare

    async def spy(self: LocalSequence, dense: EngineSequence) -> Divergence:
        # Only a row that was delivered has decoded.
        delivered = self._decoding is not None and not self.exact
        compared.append((self._call.node, delivered, await compare(self, dense)))
        return compared[-1][2]

    monkeypatch.setattr(LocalSequence, "compare", spy)
    with auto(tiny, **LEARNED) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    (audit,) = [a for a in result.audits if a.node == "c"]
    (found,) = [found for node, delivered, found in compared if node == "c" and delivered]
    assert audit.used
    assert (audit.divergence, audit.first_divergence) == (found.mean, found.first)
    assert (audit.top1_agreement, audit.same_text) == (found.top1, found.same_text)


def test_calls_of_a_run_are_measured_one_after_another(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a row for the shadow and one for every level: together they would take many."""
    open_, most = set[str](), 0
    shadow, learn = Auditor._shadow, auditing._learn

    def begins(
        self: Auditor, done: Finished
    ) -> AbstractAsyncContextManager[tuple[EngineSequence, int]]:
        nonlocal most
        open_.add(done.call.node)
        most = max(most, len(open_))
        return shadow(self, done)

    async def ends(seq: EngineSequence, segments: Sequence[Segment]) -> None:
        await learn(seq, segments)
        open_.clear()

    monkeypatch.setattr(Auditor, "_shadow", begins)
    monkeypatch.setattr(auditing, "_learn", ends)
    graph = fully_connected(*(agent(name, 20) for name in "abcd"))
    with auto(tiny, **LEARNED) as active:
        result = runs(active, MIN_SAMPLES + 1, graph)[-1]
    assert {a.node for a in result.audits if a.used} == {"b", "c", "d"}
    assert most == 1


@pytest.mark.parametrize("shape", TINY)
def test_every_kind_of_model_realigns_and_is_audited(
    engine_of: Callable[..., LocalEngine], shape: str
) -> None:
    """Prompts of 100 tokens and more are beyond every window. kvcomm runs on them too."""
    engine = engine_of(f"random:{shape}", "float64")
    engine.forget()
    with auto(engine, **LEARNED) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    call = result.call("b").report
    assert call.prompt_tokens > 100
    assert not call.exact
    audit = next(a for a in result.audits if a.node == "b")
    assert not audit.error
    assert audit.divergence is not None
    assert audit.divergence > 0
    with session(engine, "kvcomm") as paper:
        assert all(paper.run(GRAPH, task).answer is not None for task in TASKS[:4])


def test_audits_and_bases_come_after_the_answer_and_do_not_count_as_its_time(
    tiny: LocalEngine,
) -> None:
    with auto(tiny, **LEARNED) as active:
        events = Events()
        active._listeners = (events,)
        result = runs(active, MIN_SAMPLES + 1)[-1]
    last = max(call.report.finished_at for call in result.calls)
    assert result.totals.wall_s < last + 0.5
    order = [event.kind for event in events.all if getattr(event, "node", "") == "b"]
    assert order.index("audit") > order.index("call")


def test_a_failed_audit_is_recorded_and_harms_nobody(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object, dense: EngineSequence) -> None:
        raise RuntimeError("no comparison today")

    monkeypatch.setattr("kvcomm.engine.sequence.LocalSequence.compare", broken)
    with auto(tiny, **LEARNED) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    assert result.answer
    audits = [a for a in result.audits if a.node == "b"]
    assert {a.error for a in audits} == {"RuntimeError: no comparison today"}
    assert audits[0].divergence is None


def test_a_shadow_that_fails_gives_its_row_back(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, failed = LocalSequence.decode, []

    def broken(self: LocalSequence) -> AsyncIterator[Token]:
        if self._priority == BACKGROUND:  # only shadows are answered there
            failed.append(self)
            raise RuntimeError("no shadow today")
        return decode(self)

    monkeypatch.setattr("kvcomm.engine.sequence.LocalSequence.decode", broken)
    with auto(tiny, **LEARNED) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    assert failed
    assert {a.error for a in result.audits if a.error} == {"RuntimeError: no shadow today"}
    assert tiny.room.used == 0


def test_exact_agents_are_never_realigned(tiny: LocalEngine) -> None:
    graph = fully_connected(agent("a"), agent("b"), agent("j", exact=True))
    with auto(tiny, **LEARNED) as active:
        results = runs(active, MIN_SAMPLES + 3, graph)
    assert not results[-1].call("b").report.exact
    for result in results:
        assert all(step.way != "realign" for step in result.call("j").steps)
        assert result.call("j").report.gate == "the agent is exact"


def test_no_clock_decides_what_is_computed(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same questions, on a machine whose forwards take other times at every look."""

    def computed(name: str) -> list[list[int]]:
        with auto(tiny, **LEARNED, namespace=name) as active:
            results = runs(active, MIN_SAMPLES + 3)
        return [[call.total("computed") for call in result.calls] for result in results]

    first = computed("quiet")
    real, drawn = time.perf_counter, random.Random(7)
    late = itertools.accumulate(drawn.choice([0.0, 0.0, 0.5, 20.0]) for _ in itertools.count())
    monkeypatch.setattr(time, "perf_counter", lambda: real() + next(late))
    assert computed("noisy") == first
    assert sum(first[-1]) < sum(first[0])


def test_inputs_are_lent_where_several_nodes_read_them(tiny: LocalEngine) -> None:
    single = AgentGraph(
        [agent("a", 40), Agent("b", prompt="{a} and then {extra}")],
        [("a", "b")],
        inputs=["task", "extra"],
    )
    with auto(tiny, **LEARNED) as active:
        for task in TASKS[: MIN_SAMPLES + 1]:
            result = active.run(single, task, extra="Something else that only b reads.")
        steps = {step.name: step for step in result.call("b").steps}
    assert steps["a"].way == "realign"
    assert steps["extra"].way == "compute"
    assert steps["extra"].reason == NOT_LENT
    with auto(tiny, **LEARNED, namespace="two") as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
        steps = {step.name: step for step in result.call("c").steps}
    assert steps["task"].way == "realign"
    assert steps["task"].lender == "a"
    assert result.totals.extra["base"] == 0


def test_the_trace_holds_the_plan(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, **LEARNED, runs=tmp_path) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    step = next(s for s in result.call("b").steps if s.name == "a")
    assert step.corrected
    assert sum(end - start for start, end in step.positions) == step.computed
    assert result.call("b").report.offsets == "linear"
    assert result.trace.path
    lines = (result.trace.path / "trace.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("audit") == len(result.audits) > 0
    assert kinds[-1] == "end"


def test_learned_offsets_and_audits_are_kept(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, **LEARNED, state=tmp_path) as active:
        runs(active, 2 * ENOUGH)
        audits = active._auto.to_json()  # type: ignore[union-attr]
    assert audits
    tiny.forget()
    with auto(tiny, **LEARNED, state=tmp_path, audit_rate=0.0) as again:
        result = again.run(GRAPH, TASKS[-1])
        found = again._auto.to_json()  # type: ignore[union-attr]
    for template, levels in audits.items():
        assert found[template]["light"][: len(levels["light"])] == levels["light"]
    assert "(5 audits)" in result.call("b").report.gate
    assert not result.call("b").report.exact


def test_damaged_audits_are_set_aside_and_named(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, **LEARNED, state=tmp_path) as active:
        runs(active, MIN_SAMPLES + 1)
    damaged = next(tmp_path.glob("*.audits.json"))
    damaged.write_text("{")
    events = Events()
    with auto(tiny, state=tmp_path, listeners=(events,)) as again:
        again.run(GRAPH, TASK)
    assert f"set aside: {damaged.name}" in events.of("state")[0].reason


@pytest.mark.parametrize(
    "options", [{"target_divergence": -1.0}, {"audit_rate": 2.0}, {"repair_budget": -0.1}]
)
def test_options_out_of_range_are_refused(tiny: LocalEngine, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        session(tiny, "auto", **options)


def test_a_repair_budget_holds(tiny: LocalEngine) -> None:
    with auto(tiny, **LEARNED, repair_budget=0.0) as active:
        result = runs(active, MIN_SAMPLES + 1)[-1]
    step = next(s for s in result.call("b").steps if s.name == "a")
    assert step.way == "realign"
    assert step.computed <= 1  # the message's last token has no KV


def test_offsets_are_seen_by_requests_in_flight(tiny: LocalEngine) -> None:
    """Two sessions on one engine: what one learns, the other uses at its next call."""
    with auto(tiny, **LEARNED) as one, auto(tiny, **LEARNED) as two:
        runs(one, MIN_SAMPLES)
        result = two.run(GRAPH, TASKS[-1])
    assert not result.call("b").report.exact


def test_what_a_namespace_learned_can_be_forgotten(tiny: LocalEngine) -> None:
    for name in ("one", "two"):
        with auto(tiny, **LEARNED, namespace=name) as active:
            runs(active, MIN_SAMPLES + 1)
    tiny.forget("one")
    with auto(tiny, **LEARNED, namespace="one") as active:
        assert "0 samples" in active.run(GRAPH, TASKS[0]).call("b").report.gate
    with auto(tiny, **LEARNED, namespace="two") as active:
        assert not active.run(GRAPH, TASKS[9]).call("b").report.exact
