"""Calls that are cut short: what the trace keeps of them, and how it is shown."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvcomm import Delta, ToolCall
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import NodeFailed
from kvcomm.graphs import chain, fully_connected
from kvcomm.runtime.twins import LISTENER
from kvcomm.session import Session
from kvcomm.trace import TraceRun, read_trace
from kvcomm.trace.advice import advice, warnings
from kvcomm.trace.diff import show_diff
from kvcomm.trace.export import FORMATS
from kvcomm.trace.log import event_line
from kvcomm.trace.show import show_run
from kvcomm.trace.timeline import Timeline
from tests.runtime.support import ENDLESS, TASK, Events, agent, forever, session

TEAM = fully_connected(agent("a", 8), agent("b", 60), agent("c"))
# The same, but b is never done: however fast it decodes, it is under way when it is cancelled.
HELD = fully_connected(agent("a", 8), agent("b", 60, post=forever), agent("c"))


async def cancelled_at(
    active: Session, node: str, pieces: int, folder: Path
) -> tuple[TraceRun, str]:
    """The trace of a run that is cancelled when `node` has written so many pieces, and those."""
    said: list[str] = []

    def put(item: object) -> None:
        if isinstance(item, Delta) and item.node == node:
            said.append(item.text)
            if len(said) == pieces:
                run.cancel()

    LISTENER.set(put)
    run = asyncio.create_task(active.arun(HELD, TASK, out=folder))
    with pytest.raises(asyncio.CancelledError):
        await run
    return read_trace(folder / "trace.jsonl"), "".join(said)


@pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm"])
async def test_a_call_that_decodes_leaves_its_prompt_and_what_it_wrote(
    tiny: LocalEngine, mode: str, tmp_path: Path
) -> None:
    active = session(tiny, mode)
    trace, said = await cancelled_at(active, "b", 5, tmp_path)
    whole = (await active.arun(TEAM, TASK)).call("b")
    views = {view.node: view for view in trace.calls}
    assert views["a"].call
    assert not views["a"].interrupted
    cut = views["b"].interrupted
    assert not views["b"].call
    # Its prompt is whole, segment by segment.
    prompt = whole.report.prompt_tokens
    assert cut.prompt_tokens == sum(step.tokens for step in views["b"].steps) == prompt
    for step in views["b"].steps:
        assert step.computed + step.prefix + step.realigned == step.tokens
        assert trace.text(step) is not None
    # What it wrote is the beginning of what it would have written. (It may end in a character.)
    assert cut.text.startswith(said)
    assert whole.text.startswith(cut.text.rstrip("\ufffd"))
    assert 5 <= cut.output_tokens <= 60
    assert cut.stop == "interrupted"
    assert cut.ready_at <= cut.first_token_at <= cut.finished_at
    # The run's books hold it, too.
    assert (trace.finished.status, trace.finished.calls) == ("interrupted", 1)
    totals = trace.finished.totals
    ahead = sum(s.tokens for s in views["c"].steps) if "c" in views else 0
    assert totals.prompt_tokens == views["a"].call.prompt_tokens + prompt + ahead
    assert totals.computed_tokens + totals.reused_tokens == totals.prompt_tokens
    assert totals.wall_s >= cut.finished_at - trace.started.t


async def test_a_call_that_works_ahead_leaves_what_was_computed(cut_short: TraceRun) -> None:
    cut = cut_of(cut_short, "c")
    assert (cut.ready_at, cut.first_token_at, cut.output_tokens, cut.text) == (None, None, 0, "")
    (view,) = [view for view in cut_short.calls if view.node == "c"]
    assert all(step.ahead == step.tokens for step in view.steps)


async def test_nothing_is_written_twice_of_an_answer(tiny: LocalEngine, tmp_path: Path) -> None:
    """Its report is there; what was cancelled is what comes behind."""
    async with aclosing(session(tiny, "exact").astream(ENDLESS, TASK, out=tmp_path)) as stream:
        async for item in stream:
            if isinstance(item, ToolCall):
                break
    trace = read_trace(tmp_path / "trace.jsonl")
    (view,) = [view for view in trace.calls if view.node == "a"]
    assert view.call is not None
    assert view.interrupted is None
    assert trace.skipped == 0


def test_a_time_limit_leaves_what_was_written_until_then(tiny: LocalEngine) -> None:
    events = Events()
    graph = chain(agent("a", post=forever, timeout_s=0.2))
    with session(tiny, "exact", listeners=[events]) as active, pytest.raises(NodeFailed):
        active.run(graph, TASK)
    (cut,) = events.of("interrupted")
    assert cut.output_tokens == 12
    assert len(cut.text) > 0


@pytest.fixture
async def cut_short(tiny: LocalEngine, tmp_path: Path) -> TraceRun:
    """A run that was interrupted while b was decoding, and c worked ahead."""
    trace, _ = await cancelled_at(session(tiny, "exact"), "b", 20, tmp_path / "run")
    return trace


def cut_of(run: TraceRun, node: str = "b") -> Any:
    return next(view.interrupted for view in run.calls if view.node == node)


def shown(item: object) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(item)
    return console.export_text()


async def test_it_is_shown(cut_short: TraceRun) -> None:
    text = " ".join(shown(show_run(cut_short, segments=True)).split())
    tokens = cut_of(cut_short).output_tokens
    assert "status interrupted in" in text
    assert "2 calls under way" in text
    assert f"interrupted after {tokens} tokens, at" in text
    assert "interrupted while it waited for its inputs" in text
    assert "did not finish" not in text
    lines = [event_line(event) or "" for event in cut_short.events]
    assert any(line.startswith(f"b interrupted, {tokens} tokens") for line in lines)
    bars = shown(Timeline(cut_short)).split("\n")
    assert any(line.split()[0] == "b" and "█" in line and "cut" in line for line in bars if line)


async def test_every_export_and_reader_takes_it(cut_short: TraceRun, tmp_path: Path) -> None:
    for name, kind in FORMATS.items():
        kind.write(cut_short, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    rows = list(csv.DictReader((tmp_path / "csv").read_text().splitlines()))
    (row,) = [row for row in rows if row["node"] == "b"]
    tokens = str(cut_of(cut_short).output_tokens)
    assert (row["stop"], row["output_tokens"]) == ("interrupted", tokens)
    spans = json.loads((tmp_path / "otel").read_text())["resourceSpans"][0]["scopeSpans"][0]
    messages = [span["status"].get("message") for span in spans["spans"]]
    assert messages.count("interrupted") == 3
    slices = json.loads((tmp_path / "perfetto").read_text())["traceEvents"]
    stops = [s["args"].get("stop") for s in slices if s["name"] == "decode"]
    assert sorted(stops) == ["interrupted", "length"]
    warnings(cut_short)
    advice(cut_short)
    show_diff(cut_short, cut_short)
