"""Sessions: streams, event loops, run folders, and state that survives."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import load_engine
from kvcomm.errors import StateError, UsageError
from kvcomm.graphs import chain
from kvcomm.runtime.result import Result
from kvcomm.runtime.session import Delta, Session
from kvcomm.trace import read_trace
from tests.runtime.support import TASK, Events, agent, session

GRAPH = chain(agent("a"), agent("b"))


def test_a_stream_spells_every_message_and_ends_with_the_result(smol: LocalEngine) -> None:
    with session(smol, "exact") as active:
        items = list(active.stream(GRAPH, TASK))
    result = items[-1]
    assert isinstance(result, Result)
    for call in result.calls:
        pieces = [item for item in items[:-1] if isinstance(item, Delta)]
        text = "".join(piece.text for piece in pieces if piece.node == call.node)
        assert call.text.startswith(text)
        assert len(call.text) - len(text) <= 1


def test_an_error_in_a_stream_is_raised(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active, pytest.raises(UsageError, match="empty"):
        list(active.stream(GRAPH, " "))


async def test_leaving_a_stream_cancels_the_run(tiny: LocalEngine) -> None:
    active = session(tiny, "exact")
    stream = active.astream(chain(agent("a", 4000)), TASK)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await tiny.call(lambda: None)
    steps = tiny.loop.steps
    await asyncio.sleep(0.05)
    assert tiny.loop.steps <= steps + 1


async def test_run_works_inside_a_running_event_loop(tiny: LocalEngine) -> None:
    # As in a notebook: the caller's own loop is busy, the session has one of its own.
    with session(tiny, "exact") as active:
        assert active.run(GRAPH, TASK).answer == (await active.arun(GRAPH, TASK)).answer


async def test_runs_of_one_session_may_overlap(tiny: LocalEngine) -> None:
    tasks = [f"{TASK} {i}" for i in range(5)]
    active = session(tiny, "exact")
    together = await asyncio.gather(*[active.arun(GRAPH, task) for task in tasks])
    alone = [await active.arun(GRAPH, task) for task in tasks]
    assert [r.answer for r in together] == [r.answer for r in alone]


def test_a_run_folder_holds_the_trace(tiny: LocalEngine, tmp_path: Path) -> None:
    with Session(tiny, reuse="exact", state=None, runs=tmp_path) as active:
        first, second = active.run(GRAPH, TASK), active.run(GRAPH, TASK)
    assert first.trace.path != second.trace.path
    assert first.trace.path is not None
    trace = read_trace(first.trace.path / "trace.jsonl")
    assert trace.started.inputs == {"task": TASK}
    assert [view.node for view in trace.calls] == ["a", "b"]
    assert trace.finished is not None
    assert trace.finished.answer == first.answer
    assert [view.call for view in trace.last_calls()] == [call.report for call in first.calls]
    assert [view.steps for view in trace.last_calls()] == [call.steps for call in first.calls]


def test_a_trace_spells_every_prompt_and_holds_no_text_twice(
    smol: LocalEngine, tmp_path: Path
) -> None:
    with session(smol, "exact", runs=tmp_path) as active:
        result = active.run(GRAPH, TASK)
    assert result.trace.path is not None
    trace = read_trace(result.trace.path / "trace.jsonl")
    ids = {"task": tuple(smol.codec.encode(TASK))}
    for view in trace.last_calls():
        assert view.message is not None
        segments = GRAPH.template(view.node, smol.codec).fill(ids)
        ids[view.node] = tuple(view.message.ids)
        prompt = "".join(trace.text(step) or "" for step in view.steps)
        assert prompt == smol.codec.decode([i for segment in segments for i in segment.ids])
    assert len(set(trace.texts.values())) == len(trace.texts)
    written = [event for event in trace.events if event.kind in ("text", "step")]
    assert len(written) > len(trace.texts) + len(trace.texts) / 2
    assert {step.text for view in trace.calls for step in view.steps} == set(trace.texts)


def test_json_has_what_other_programs_rely_on(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "exact") as active:
        result = active.run(GRAPH, TASK, out=tmp_path / "out")
    found = json.loads(json.dumps(result.to_json()))
    assert set(found) == {
        "answer",
        "model",
        "mode",
        "calls",
        "audits",
        "totals",
        "trace",
        "warnings",
    }
    assert found["trace"] == str(tmp_path / "out")
    call = found["calls"][1]
    assert {
        "node", "agent", "round", "prompt_tokens", "output_tokens", "exact", "ttft_s", "decode_s",
        "segments",
    } <= set(call)  # fmt: skip
    assert set(call["segments"][0]) == {
        "kind", "name", "tokens", "computed", "prefix", "realigned", "ahead", "reason",
    }  # fmt: skip
    assert {"prompt_tokens", "computed_tokens", "reused_tokens", "extra", "wall_s"} == set(
        found["totals"]
    )
    assert {"base", "pilot", "audit"} <= set(found["totals"]["extra"])


def test_a_folder_with_a_trace_is_not_overwritten(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "exact") as active:
        active.run(GRAPH, TASK, out=tmp_path)
        with pytest.raises(UsageError, match="already holds a trace"):
            active.run(GRAPH, TASK, out=tmp_path)


def test_anchors_survive_into_the_next_session(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "kvcomm", state=tmp_path) as active:
        assert "0 anchors" in active.run(GRAPH, TASK).call("b").report.gate
    learned = {key: model.samples for key, model in tiny.offsets.models.items()}
    tiny.forget()
    events = Events()
    with session(tiny, "kvcomm", state=tmp_path, listeners=[events]) as active:
        assert "1 anchor of at least" in active.run(GRAPH, TASK).call("b").report.gate
    (read,) = events.of("state")
    assert read.samples == sum(learned.values())
    assert read.templates == 2


def test_state_of_another_model_is_refused(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "kvcomm", state=tmp_path) as active:
        active.run(GRAPH, TASK)
    with (
        load_engine("random:qwen3-tiny", device="cpu") as other,
        session(other, "kvcomm", state=tmp_path) as active,
        pytest.raises(StateError, match=r"was learned by random:llama-tiny .* --state none"),
    ):
        active.run(GRAPH, TASK)


def test_state_of_another_template_is_not_used(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "kvcomm", state=tmp_path) as active:
        active.run(GRAPH, TASK)
    tiny.forget()
    with session(tiny, "kvcomm", state=tmp_path) as active:
        renamed = chain(agent("other"), agent("name"))
        assert "0 anchors" in active.run(renamed, TASK).call("name").report.gate


def test_the_default_state_lies_in_the_users_cache(
    tiny: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    with Session(tiny, reuse="kvcomm", runs=None) as active:
        active.run(GRAPH, TASK)
    assert (tmp_path / "state" / "kvcomm-0.1" / tiny.fingerprint / "manifest.json").exists()
