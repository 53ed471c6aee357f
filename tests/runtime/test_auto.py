"""auto in a session: exact at first, realigned where its bound meets the target."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import fully_connected
from kvcomm.reuse.auto import ENOUGH
from kvcomm.reuse.plan import MIN_SAMPLES
from tests.runtime.support import (
    GRAPH,
    LEARNED,
    TASK,
    TASKS,
    Events,
    agent,
    auto,
    runs,
    session,
    steps_of,
)
from tests.support import TINY

pytestmark = pytest.mark.usefixtures("predictable")


def test_nothing_is_realigned_before_enough_was_learned(tiny: LocalEngine) -> None:
    with auto(tiny, **LEARNED) as active:
        results = runs(active, MIN_SAMPLES + 2)
    for result in results[:MIN_SAMPLES]:
        assert all(call.report.exact for call in result.calls)
        assert not any(audit.used for audit in result.audits)
        assert "too little learned" in result.call("b").report.gate
    late = results[-1].call("b").report
    assert late.gate.startswith("auto: 10%, bound")
    assert not late.exact


def test_exact_calls_of_auto_say_what_dense_says(tiny: LocalEngine) -> None:
    with auto(tiny, prior=1e9) as active, session(tiny, "dense") as dense:
        for mine, true in zip(runs(active, 8), runs(dense, 8), strict=True):
            assert {c.node: c.text for c in mine.calls} == {c.node: c.text for c in true.calls}


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
        assert all(result.answer is not None for result in runs(paper, 4))


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


def test_learned_offsets_and_audits_are_kept(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, **LEARNED, state=tmp_path) as active:
        runs(active, 2 * ENOUGH)
        audits = active.auto.to_json()  # type: ignore[union-attr]
    assert audits
    tiny.forget()
    with auto(tiny, **LEARNED, state=tmp_path, audit_rate=0.0) as again:
        result = again.run(GRAPH, TASKS[-1])
        found = again.auto.to_json()  # type: ignore[union-attr]
    for template, levels in audits.items():
        assert found[template]["10%"][: len(levels["10%"])] == levels["10%"]
    assert "audits)" in result.call("b").report.gate
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


def test_a_plan_is_in_the_trace_and_a_repair_budget_holds(tiny: LocalEngine) -> None:
    for budget, most in ((0.25, 40), (0.0, 1)):  # the message's last token has no KV
        with auto(tiny, **LEARNED, repair_budget=budget, namespace=str(budget)) as active:
            result = runs(active, MIN_SAMPLES + 1)[-1]
        step = steps_of(result, "a")["b"]
        assert step.way == "realign"
        assert step.corrected
        assert sum(end - start for start, end in step.positions) == step.computed <= most
        assert result.call("b").report.offsets == "linear"


def test_sessions_of_one_engine_share_what_is_learned(tiny: LocalEngine) -> None:
    with auto(tiny, **LEARNED) as one, auto(tiny, **LEARNED) as two:
        runs(one, MIN_SAMPLES)
        assert not two.run(GRAPH, TASKS[-1]).call("b").report.exact


def test_what_a_namespace_learned_can_be_forgotten(tiny: LocalEngine) -> None:
    for name in ("one", "two"):
        with auto(tiny, **LEARNED, namespace=name) as active:
            runs(active, MIN_SAMPLES + 1)
    tiny.forget("one")
    with auto(tiny, **LEARNED, namespace="one") as active:
        assert "0 samples" in active.run(GRAPH, TASKS[0]).call("b").report.gate
    with auto(tiny, **LEARNED, namespace="two") as active:
        assert not active.run(GRAPH, TASKS[9]).call("b").report.exact
