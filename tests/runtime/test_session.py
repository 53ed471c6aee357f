"""Sessions: streams, event loops, run folders, and state that survives."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import chain
from kvcomm.reuse.auto import LEVELS
from kvcomm.reuse.state_files import VERSIONED
from kvcomm.session import Session
from kvcomm.trace import read_trace
from tests.codecs import DATED
from tests.runtime.support import TASK, Events, agent, answered, runs, session

GRAPH = chain(agent("a"), agent("b"))


async def test_run_works_inside_a_running_event_loop(tiny: LocalEngine) -> None:
    # As in a notebook: the caller's own loop is busy, the session has one of its own.
    with session(tiny, "exact") as active:
        assert active.run(GRAPH, TASK).answer == (await active.arun(GRAPH, TASK)).answer


def test_a_run_folder_holds_the_trace(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "exact", runs=tmp_path) as active:
        first, second = active.run(GRAPH, TASK), active.run(GRAPH, TASK)
        assert first.trace.path != second.trace.path
        with pytest.raises(UsageError, match="already holds a trace"):
            active.run(GRAPH, TASK, out=first.trace.path)
    trace = read_trace(first.trace.path / "trace.jsonl")
    assert trace.started.inputs == {"task": TASK}
    assert [view.node for view in trace.calls] == ["a", "b"]
    assert trace.finished.answer == first.answer
    assert [view.call for view in trace.last_calls()] == [call.report for call in first.calls]
    assert [view.steps for view in trace.last_calls()] == [call.steps for call in first.calls]


def test_a_trace_spells_every_prompt_and_no_text_twice(smol: LocalEngine, tmp_path: Path) -> None:
    answered(smol, "exact", GRAPH, out=tmp_path)
    trace = read_trace(tmp_path / "trace.jsonl")
    ids = {"task": tuple(smol.codec.encode(TASK))}
    for view in trace.last_calls():
        segments = GRAPH.template(view.node, smol.codec).fill(ids)
        ids[view.node] = tuple(view.message.ids)
        prompt = "".join(trace.text(step) or "" for step in view.steps)
        assert prompt == smol.codec.decode([i for segment in segments for i in segment.ids])
    assert len(set(trace.texts.values())) == len(trace.texts)
    assert {step.text for view in trace.calls for step in view.steps} == set(trace.texts)


def test_json_has_what_other_programs_rely_on(tiny: LocalEngine, tmp_path: Path) -> None:
    result = answered(tiny, "exact", GRAPH, out=tmp_path / "out")
    found = json.loads(json.dumps(result.to_json()))
    assert set(found) == {
        "answer", "model", "mode", "calls", "tools", "audits", "totals", "usage", "trace",
        "warnings",
    }  # fmt: skip
    assert found["trace"] == str(tmp_path / "out")
    call = found["calls"][1]
    assert {
        "node", "agent", "round", "prompt_tokens", "output_tokens", "exact", "ttft_s", "decode_s",
        "segments", "text", "stop", "usage",
    } <= set(call)  # fmt: skip
    assert set(call["segments"][0]) == {
        "kind", "name", "tokens", "computed", "prefix", "realigned", "ahead", "reason",
    }  # fmt: skip
    assert set(found["totals"]) == {
        "prompt_tokens", "computed_tokens", "reused_tokens", "output_tokens", "extra", "wall_s",
        "queued_s",
    }  # fmt: skip
    assert {"base", "audit"} <= set(found["totals"]["extra"])


def test_anchors_survive_into_the_next_session(
    tiny: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's cache, if no folder is named."""
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    with Session(tiny, reuse="kvcomm", runs=None) as active:
        assert "0 anchors" in active.run(GRAPH, TASK).call("b").report.gate
    folder = tmp_path / "state" / VERSIONED / tiny.fingerprint
    learned = {key: model.samples for key, model in tiny.offsets.models.items()}
    tiny.forget()
    events = Events()
    with session(tiny, "kvcomm", state=folder, listeners=[events]) as active:
        assert "1 anchor of at least" in active.run(GRAPH, TASK).call("b").report.gate
        renamed = chain(agent("other"), agent("name"))
        assert "0 anchors" in active.run(renamed, TASK).call("name").report.gate
    read = events.of("state")[0]
    assert (read.templates, read.samples) == (2, sum(learned.values()))


# One day is written in more bytes than the other.
DAYS = (datetime(2026, 5, 9, 23, 50), datetime(2026, 5, 10, 0, 10))
DAY_BEHIND = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ ' (' + strftime_now('%-d %B') + ')<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture(params=[DATED, DAY_BEHIND], ids=["before the texts", "behind them"])
def dated(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> LocalEngine:
    monkeypatch.setattr(tiny.codec.tokenizer, "chat_template", request.param)
    return tiny


def test_all_runs_of_a_session_are_of_one_day(dated: LocalEngine, tmp_path: Path) -> None:
    spelled = []
    for day in DAYS:
        with session(dated, "exact", now=day) as active:
            for number in range(2):
                folder = tmp_path / f"{day.day}-{number}"
                first = active.run(GRAPH, TASK, out=folder).call("a")
                trace = read_trace(folder / "trace.jsonl")
                spelled.append("".join(trace.text(s) or "" for v in trace.calls for s in v.steps))
        # The second run found the prompts of the first.
        assert first.total("prefix") >= first.report.prompt_tokens - 1
    assert spelled[0] == spelled[1]
    assert spelled[2] == spelled[3] != spelled[0]
    assert "9 May" in spelled[0]
    assert "10 May" in spelled[2]


@pytest.mark.parametrize("mode", ["kvcomm", "auto"])
def test_what_was_learned_is_found_again_on_the_next_day(
    dated: LocalEngine, tmp_path: Path, mode: str
) -> None:
    learned = []
    for day in DAYS:
        dated.forget()
        events = Events()
        with session(dated, mode, state=tmp_path, now=day, listeners=[events]) as active:
            if active.auto:
                active.auto.priors = {level.name: 1.0 for level in LEVELS}
            runs(active, 3, GRAPH)
        known = {key[1:] for key, model in dated.offsets.models.items() if model.samples}
        learned.append((known, events.of("state")[0]))
    (first, before), (second, after) = learned
    assert first == second
    assert before.templates == 0
    assert after.templates == len({template for template, _ in first})
    assert after.samples > 0
    assert not any(reason in after.reason for reason in ("aside", "damaged"))


def test_texts_are_realigned_by_what_was_learned_on_another_day(
    dated: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvcomm.reuse.offsets.anchors.GAMMA", 10.0)
    graph, calls = chain(agent("a")), []
    for day in DAYS:
        dated.forget()
        with session(dated, "kvcomm", state=tmp_path, now=day) as active:
            calls += [active.run(graph, TASK).call("a") for _ in range(3)]
    gates = [call.report.gate.partition(":")[0] for call in calls]
    assert gates == ["dense", "dense", "realigned", "realigned", "realigned", "realigned"]
    behind = calls[3].steps[-1]
    if "Today" in dated.codec.tokenizer.chat_template:
        assert behind.realigned > 0
    else:  # the day is written in other tokens than those that anchors know
        assert (behind.realigned, behind.computed) == (0, behind.tokens)
        assert "no anchor in front of a literal of" in behind.reason
