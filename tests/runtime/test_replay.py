"""Replaying the plans of a trace."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import chain
from kvcomm.reuse.plan import Predictability, SegmentFacts
from kvcomm.reuse.replay import Planned, Replay
from kvcomm.runtime.result import Result
from kvcomm.session import Session
from kvcomm.trace.read import read_trace
from tests.codecs import DATED
from tests.runtime.support import GRAPH, TASKS, agent, auto, runs, session, steps_of

pytestmark = pytest.mark.usefixtures("predictable")


def plans(result: Result) -> list[tuple[object, ...]]:
    return [
        (call.node, step.name, step.way if step.way == "realign" else "", step.positions)
        for call in sorted(result.calls, key=lambda call: call.node)
        for step in call.steps
    ]


def again(active: Session, original: Result, task: str) -> Result:
    """A run by the plans of another one."""
    return active.run(GRAPH, task, replay=original.trace.path / "trace.jsonl")


def test_a_realigned_run_is_done_again_by_positions(tiny: LocalEngine, tmp_path: Path) -> None:
    """Other texts are computed, and the reason says so."""
    with auto(tiny, target_divergence=100.0, audit_rate=0.0, runs=tmp_path) as active:
        runs(active, 12)
        original = active.run(GRAPH, TASKS[20])
        same, other = again(active, original, TASKS[20]), again(active, original, "Say it.")
    assert any(step.way == "realign" for call in original.calls for step in call.steps)
    assert plans(same) == plans(original)
    assert [c.text for c in same.calls] == [c.text for c in original.calls]
    assert same.call("b").report.gate == "replayed"
    assert not same.audits
    assert steps_of(other)["b"].reason.startswith("replayed plan has")


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
    first, next_day, replayed = found
    assert replayed == first != next_day
    assert first[0] == datetime(2026, 5, 9)


@pytest.mark.parametrize("mode", ["exact", "dense", "kvcomm"])
def test_every_mode_can_be_replayed(tiny: LocalEngine, tmp_path: Path, mode: str) -> None:
    with session(tiny, mode, runs=tmp_path) as active:
        original = active.run(GRAPH, TASKS[0])
        same = again(active, original, TASKS[0])
        other = active.run(chain(agent("x")), TASKS[0])
        with pytest.raises(UsageError, match=r"no finished call of .*a"):
            again(active, other, TASKS[0])
    assert [c.text for c in same.calls] == [c.text for c in original.calls]
    assert all(call.report.gate.startswith("replayed") for call in same.calls)


def test_steps_are_matched_by_name_and_length_and_do_what_can_be_done() -> None:
    yes, no = (Predictability(samples > 0, "linear", samples) for samples in (5, 0))
    planned = [Planned(name, 5, "realign", ((0, 1), (3, 4)), corrected=True) for name in "abcdfg"]
    planned[1] = Planned("b", 4, "compute")
    policy = Replay(planned, "linear")
    given = {"a": (5, 5, yes), "b": (4, 4, yes), "x": (3, 3, yes), "d": (9, 9, yes)}
    given |= {"f": (5, 0, yes), "g": (5, 5, no)}
    facts = [
        SegmentFacts("placeholder", name, tokens, tuple(range(held)), verdict)
        for name, (tokens, held, verdict) in given.items()
    ]
    steps = dict(zip(given, policy.plan(facts).segments, strict=True))
    assert [n for n, step in steps.items() if step.source == "realign"] == ["a", "g"]
    assert (steps["a"].positions, steps["a"].corrected) == ((0, 3), True)
    assert steps["x"].reason == "not in the replayed plan"
    assert "has 5 tokens here, now 9" in steps["d"].reason
    assert "no base KV now" in steps["f"].reason
    assert (steps["g"].corrected, steps["g"].reason) == (False, "replayed: rotated only")
