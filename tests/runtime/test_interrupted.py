"""Calls that are cut short: what the trace keeps of them, and how it is shown."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from kvcomm import Delta
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, chain, fully_connected
from kvcomm.runtime.twins import LISTENER
from kvcomm.session import Session
from kvcomm.trace import TraceRun, read_trace
from kvcomm.trace.advice import advice, warnings
from kvcomm.trace.diff import pairs, show_diff
from kvcomm.trace.export import FORMATS
from kvcomm.trace.lines import event_line
from kvcomm.trace.show import show_run
from kvcomm.trace.timeline import Timeline
from tests.runtime.support import ENDLESS, TASK, Events, agent, forever, session

TEAM = fully_connected(agent("a", 8), agent("b", 60), agent("c"))
# The same, but b is never done: however fast it decodes, it is under way when it is cancelled.
HELD = fully_connected(agent("a", 8), agent("b", 60, post=forever), agent("c"))


async def cancelled_at(
    active: Session, graph: AgentGraph, node: str, pieces: int, folder: Path
) -> tuple[TraceRun, str]:
    """The trace of a run that is cancelled when `node` has written so many pieces, and those."""
    said: list[str] = []

    def put(item: object) -> None:
        if isinstance(item, Delta) and item.node == node:
            said.append(item.text)
            if len(said) == pieces:
                run.cancel()

    LISTENER.set(put)
    run = asyncio.create_task(active.arun(graph, TASK, out=folder))
    with pytest.raises(asyncio.CancelledError):
        await run
    return read_trace(folder / "trace.jsonl"), "".join(said)


@pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm"])
async def test_a_call_that_decodes_leaves_its_prompt_and_what_it_wrote(
    tiny: LocalEngine, mode: str, tmp_path: Path
) -> None:
    active = session(tiny, mode)
    trace, said = await cancelled_at(active, HELD, "b", 5, tmp_path)
    whole = await active.arun(TEAM, TASK)
    assert trace.finished is not None
    assert trace.finished.status == "interrupted"
    views = {view.node: view for view in trace.calls}
    assert views["a"].call
    assert not views["a"].interrupted
    cut = views["b"].interrupted
    assert cut is not None
    assert not views["b"].call
    # Its prompt is whole, segment by segment.
    prompt = whole.call("b").report.prompt_tokens
    assert cut.prompt_tokens == sum(step.tokens for step in views["b"].steps) == prompt
    for step in views["b"].steps:
        assert step.computed + step.prefix + step.realigned == step.tokens
        assert trace.text(step) is not None
    # What it wrote is the beginning of what it would have written.
    assert cut.text.startswith(said)
    assert 5 <= cut.output_tokens <= 60
    # (It may end within a character.)
    assert whole.call("b").text.startswith(cut.text.rstrip("\ufffd"))
    assert cut.stop == "interrupted"
    assert cut.ready_at is not None
    assert cut.first_token_at is not None
    assert cut.ready_at <= cut.first_token_at <= cut.finished_at
    # The run's books hold it, too.
    totals = trace.finished.totals
    finished = views["a"].call.prompt_tokens
    in_row = sum(s.tokens for s in views["c"].steps) if "c" in views else 0
    assert totals.prompt_tokens == finished + prompt + in_row
    assert totals.computed_tokens + totals.reused_tokens == totals.prompt_tokens
    assert trace.finished.calls == 1
    assert totals.wall_s >= cut.finished_at - trace.started.t


async def test_a_call_that_works_ahead_leaves_what_was_computed(cut_short: TraceRun) -> None:
    (view,) = [view for view in cut_short.calls if view.node == "c"]
    cut = view.interrupted
    assert cut is not None
    assert (cut.ready_at, cut.first_token_at, cut.output_tokens, cut.text) == (None, None, 0, "")
    assert all(step.ahead == step.tokens for step in view.steps)


async def test_nothing_is_written_twice_of_a_call_that_has_answered(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    """Its report is there; what was cancelled is what comes behind."""
    active = session(tiny, "exact")
    stream = active.astream(ENDLESS, TASK, out=tmp_path)
    async for item in stream:
        if type(item).__name__ == "ToolCall":
            break
    await stream.aclose()  # type: ignore[attr-defined]
    trace = read_trace(tmp_path / "trace.jsonl")
    (view,) = [view for view in trace.calls if view.node == "a"]
    assert view.call is not None
    assert view.interrupted is None
    assert trace.skipped == 0


def test_a_time_limit_leaves_what_was_written_until_then(tiny: LocalEngine) -> None:
    events = Events()

    async def post(text: str) -> str:
        return await forever(text)

    graph = chain(agent("a", post=post, timeout_s=0.2))
    with session(tiny, "exact", listeners=[events]) as active, pytest.raises(NodeFailed):
        active.run(graph, TASK)
    (cut,) = events.of("interrupted")
    assert cut.output_tokens == 12
    assert len(cut.text) > 0


async def test_an_engine_that_generates_whole_answers_leaves_the_prompt(tmp_path: Path) -> None:
    with load_engine("random:llama-dynamic-tiny", device="cpu") as dense:
        trace, said = await cancelled_at(session(dense, "dense"), HELD, "b", 1, tmp_path)
    (view,) = [view for view in trace.calls if view.node == "b"]
    assert view.interrupted is not None
    assert view.interrupted.text.startswith(said)


@pytest.fixture
async def cut_short(tiny: LocalEngine, tmp_path: Path) -> TraceRun:
    """A run that was interrupted while b was decoding, and c worked ahead."""
    trace, _ = await cancelled_at(session(tiny, "exact"), HELD, "b", 20, tmp_path / "run")
    return trace


def shown(run: TraceRun, **options: object) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(show_run(run, **options))  # type: ignore[arg-type]
    return " ".join(console.export_text().split())


async def test_it_is_shown(cut_short: TraceRun) -> None:
    text = shown(cut_short, segments=True)
    cut = {view.node: view.interrupted for view in cut_short.calls}["b"]
    assert cut is not None
    assert "status interrupted in" in text
    assert "2 calls under way" in text
    assert f"interrupted after {cut.output_tokens} tokens, at" in text
    assert "interrupted while it waited for its inputs" in text
    assert "did not finish" not in text
    assert " 0 in prompts" not in text
    lines = [event_line(event) or "" for event in cut_short.events]
    assert any(line.startswith(f"b interrupted, {cut.output_tokens} tokens") for line in lines)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(Timeline(cut_short))
    bars = console.export_text().split("\n")
    assert any(line.split()[0] == "b" and "█" in line and "cut" in line for line in bars if line)


async def test_every_export_and_reader_takes_it(cut_short: TraceRun, tmp_path: Path) -> None:
    for name, kind in FORMATS.items():
        target = tmp_path / f"out.{name}"
        kind.write(cut_short, target)
        assert target.stat().st_size > 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    cut = {view.node: view.interrupted for view in cut_short.calls}["b"]
    assert cut is not None
    (row,) = [row for row in rows if row["node"] == "b"]
    assert (row["stop"], row["output_tokens"]) == ("interrupted", str(cut.output_tokens))
    assert cut.text.splitlines()[0] in (tmp_path / "out.html").read_text() or cut.text
    spans = json.loads((tmp_path / "out.otel").read_text())["resourceSpans"][0]["scopeSpans"][0]
    messages = [span["status"].get("message") for span in spans["spans"]]
    assert messages.count("interrupted") == 3
    slices = json.loads((tmp_path / "out.perfetto").read_text())["traceEvents"]
    stops = [s["args"].get("stop") for s in slices if s["name"] == "decode"]
    assert sorted(stops) == ["interrupted", "length"]
    warnings(cut_short)
    advice(cut_short)
    pairs(cut_short, cut_short)
    show_diff(cut_short, cut_short)
