"""Replaying the plans of a trace."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import chain
from kvcomm.reuse.offsets.linear import MIN_SAMPLES
from kvcomm.reuse.plan import Predictability, SegmentFacts
from kvcomm.reuse.replay import Planned, Replay
from kvcomm.runtime.result import Result
from kvcomm.trace.read import read_trace
from tests.codecs import DATED
from tests.runtime.support import GRAPH, TASKS, agent, auto, runs, session

pytestmark = pytest.mark.usefixtures("predictable")

YES = Predictability(True, "linear", 5)


def plans(result: Result) -> list[tuple[object, ...]]:
    return [
        (call.node, step.name, step.way if step.way == "realign" else "", step.positions)
        for call in sorted(result.calls, key=lambda call: call.node)
        for step in call.steps
    ]


def test_a_realigned_run_is_done_again_position_by_position(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    with auto(tiny, target_divergence=100.0, audit_rate=0.0, runs=tmp_path) as active:
        runs(active, 12)
        original = active.run(GRAPH, TASKS[20])
        assert original.trace.path
        again = active.run(GRAPH, TASKS[20], replay=original.trace.path / "trace.jsonl")
    assert any(step.way == "realign" for call in original.calls for step in call.steps)
    assert plans(again) == plans(original)
    assert [c.text for c in again.calls] == [c.text for c in original.calls]
    assert again.call("b").report.gate == "replayed"
    assert not again.audits


def test_other_texts_are_computed_and_the_reason_says_so(tiny: LocalEngine, tmp_path: Path) -> None:
    with auto(tiny, target_divergence=100.0, runs=tmp_path) as active:
        original = runs(active, MIN_SAMPLES + 1)[-1]
        assert original.trace.path
        trace = original.trace.path / "trace.jsonl"
        other = active.run(GRAPH, "Say: " + TASKS[0], replay=trace)
    reasons = [step.reason for step in other.call("b").steps if step.name == "task"]
    assert reasons[0].startswith("replayed plan has")


def test_a_run_is_done_again_as_of_its_day(
    tiny: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.codec.tokenizer, "chat_template", DATED)
    found = []
    for day, replay in ((9, None), (10, None), (10, tmp_path / "0" / "trace.jsonl")):
        with session(tiny, "exact", now=datetime(2026, 5, day)) as active:
            out = tmp_path / str(len(found))
            result = active.run(GRAPH, TASKS[0], out=out, replay=replay)
            trace = read_trace(out / "trace.jsonl")
            prompts = ["".join(trace.text(s) or "" for s in view.steps) for view in trace.calls]
            found.append((trace.started.now, [call.text for call in result.calls], prompts))
    first, next_day, again = found
    assert again == first != next_day
    assert first[0] == datetime(2026, 5, 9)


@pytest.mark.parametrize("mode", ["exact", "dense", "kvcomm"])
def test_every_mode_can_be_replayed(tiny: LocalEngine, tmp_path: Path, mode: str) -> None:
    with session(tiny, mode, runs=tmp_path) as active:
        original = active.run(GRAPH, TASKS[0])
        assert original.trace.path
        again = active.run(GRAPH, TASKS[0], replay=original.trace.path / "trace.jsonl")
    assert [c.text for c in again.calls] == [c.text for c in original.calls]
    assert all(call.report.gate.startswith("replayed") for call in again.calls)


def test_a_trace_of_another_graph_is_refused(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "exact", runs=tmp_path) as active:
        original = active.run(chain(agent("x")), TASKS[0])
        assert original.trace.path
        with pytest.raises(UsageError, match=r"no finished call of .*a"):
            active.run(GRAPH, TASKS[0], replay=original.trace.path / "trace.jsonl")


def fact(
    name: str, tokens: int, *, covered: bool = True, verdict: Predictability | None = YES
) -> SegmentFacts:
    held = tuple(range(tokens)) if covered else ()
    return SegmentFacts("placeholder", name, tokens, held, verdict)


def test_steps_are_matched_by_name_and_length() -> None:
    policy = Replay(
        [
            Planned("a", 5, "realign", ((0, 1), (3, 4)), corrected=True),
            Planned("b", 4, "compute"),
            Planned("c", 3, "realign"),
            Planned("d", 3, "realign"),
        ],
        "linear",
    )
    facts = [fact("a", 5), fact("b", 4), fact("x", 3), fact("d", 9), fact("e", 2)]
    steps = policy.plan(facts).segments
    assert [step.source for step in steps] == [
        "realign",
        "compute",
        "compute",
        "compute",
        "compute",
    ]
    assert steps[0].positions == (0, 3)
    assert steps[0].corrected
    assert steps[2].reason == "not in the replayed plan"
    assert "has 3 tokens here, now 9" in steps[3].reason
    assert steps[4].reason == "not in the replayed plan"


def test_without_base_kv_or_offsets_it_does_what_can_be_done() -> None:
    policy = Replay([Planned("a", 5, "realign", (), corrected=True)], "linear")
    assert "no base KV now" in policy.plan([fact("a", 5, covered=False)]).segments[0].reason
    unknown = policy.plan([fact("a", 5, verdict=Predictability(False, "none", 0))]).segments[0]
    assert unknown.source == "realign"
    assert not unknown.corrected
    assert unknown.reason == "replayed: rotated only"
