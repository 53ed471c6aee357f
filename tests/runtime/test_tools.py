"""Tools in a graph: their texts as inputs, as messages, and what the trace says of them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import GraphError, NodeFailed
from kvcomm.graphs import AgentGraph, chain
from kvcomm.trace.read import read_trace
from kvcomm.trace.show import show_run
from tests.runtime.support import (
    TASK,
    TASKS,
    Events,
    agent,
    answered,
    forever,
    session,
    steps_of,
)

PASSAGES = ("Spiders have eight legs, and no wings at all.", "Cats sleep most of the day.")
OUTPUTS = ("passage1", "passage2")


def reader(name: str, **fields: Any) -> Agent:
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{passage1}\n\n{passage2}\n\n{task}\n\n{messages}\n\nAnswer.",
        sampling=Sampling(max_tokens=10),
        **fields,
    )


def search(texts: Mapping[str, str]) -> tuple[str, ...]:
    assert texts["task"].startswith(TASK[:13])
    return PASSAGES


def searching(run: Any, **fields: Any) -> AgentGraph:
    """A reader of what a tool finds."""
    return AgentGraph([Tool("search", run, OUTPUTS, **fields), reader("a")], [("search", "a")])


def web(run: Any, **fields: Any) -> AgentGraph:
    """An agent that hears one text of a tool."""
    return AgentGraph([Tool("web", run, **fields), agent("a")], [("web", "a")])


SEARCH = Tool("search", search, outputs=OUTPUTS)
READERS = AgentGraph(
    [SEARCH, reader("a"), reader("b"), agent("c")],
    [("search", "a"), ("search", "b"), ("a", "c"), ("b", "c")],
)
COUNTER = Tool("counter", lambda texts: f"The message has {len(texts['a'])} characters.")
COUNTED = AgentGraph(
    [agent("a", 20), COUNTER, agent("b")], [("a", "counter"), ("a", "b"), ("counter", "b")]
)


@pytest.mark.parametrize("graph", [READERS, COUNTED], ids=["search", "counter"])
def test_every_mode_runs_and_adds_up_and_exact_answers_as_dense_does(
    tiny: LocalEngine, graph: AgentGraph
) -> None:
    answers = {}
    for mode in ("dense", "exact", "kvcomm", "auto"):
        with session(tiny, mode) as active:
            results = [active.run(graph, task) for task in TASKS[:4]]
        answers[mode] = results[0].answer
        for call in (call for result in results for call in result.calls):
            assert sum(step.tokens for step in call.steps) == call.report.prompt_tokens
            assert all(s.computed + s.prefix + s.realigned == s.tokens for s in call.steps)
    assert answers["exact"] == answers["dense"]


def test_kv_of_a_text_is_shared_by_its_readers_and_by_questions(tiny: LocalEngine) -> None:
    """Base KV is made once: the second reader, and the next question, find it."""
    later = TASK + " And why?"
    with session(tiny, "kvcomm") as active:
        first, second = active.run(READERS, TASK), active.run(READERS, later)
    assert first.totals.extra["base"] > sum(len(text) for text in PASSAGES) // 2
    # One token a character, and the header of the task's base; none of the passages.
    assert 0 <= second.totals.extra["base"] - len(later) < 10


def test_the_clock_of_a_reader_starts_when_its_tool_is_done(tiny: LocalEngine) -> None:
    """And text beyond the limit is cut, and the trace says so."""
    heard = Events()
    graph = searching(lambda texts: ["long " * 50, "short"], max_tokens=12)
    result = answered(tiny, "exact", graph, listeners=(heard,))
    (tool,) = heard.of("tool")
    report = result.call("a").report
    assert report.ready_at == tool.finished_at > tool.ready_at
    assert report.ttft_s == pytest.approx(report.first_token_at - report.ready_at)
    assert tool.cut == ["passage1"]
    assert tool.tokens == {"passage1": 12, "passage2": 5}
    assert steps_of(result, "passage1")["a"].tokens == 12


def test_graphs_with_tools_are_checked() -> None:
    with pytest.raises(GraphError, match="is a tool: let an agent have the last word"):
        AgentGraph([agent("a"), COUNTER], [("a", "counter")])
    with pytest.raises(GraphError, match="output `passage1` of tool `search`"):
        AgentGraph([SEARCH, reader("a")], [("search", "a")], inputs=("task", "passage1"))
    with pytest.raises(GraphError, match="receives a message from `search`"):
        AgentGraph([SEARCH, Agent("a", prompt="{task} {passage1}")], [("search", "a")])


def test_the_trace_shows_tools(tiny: LocalEngine, tmp_path: Path) -> None:
    answered(tiny, "exact", READERS, out=tmp_path)
    run = read_trace(tmp_path / "trace.jsonl")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(show_run(run, segments=True))
    text = console.export_text()
    assert "search  a tool" in text
    assert "passage2 (27 tokens): Cats sleep most of the day." in text
    assert "did not finish" not in text


# --- asynchronous tools ---


async def asked(texts: Mapping[str, str]) -> str:
    await asyncio.sleep(0)
    return f"You asked: {texts['task']}"


class Asked:
    """A tool with a connection of its own."""

    async def __call__(self, texts: Mapping[str, str]) -> str:
        return await asked(texts)


@pytest.mark.parametrize("run", [lambda texts: asked(texts), Asked(), partial(asked)])
def test_an_asynchronous_tool_is_awaited(tiny: LocalEngine, run: Any) -> None:
    plain = web(lambda texts: f"You asked: {TASK}")
    assert answered(tiny, "exact", web(run)).answer == answered(tiny, "exact", plain).answer


async def test_an_asynchronous_tool_runs_on_the_callers_event_loop(tiny: LocalEngine) -> None:
    loops = []

    async def run(texts: Mapping[str, str]) -> str:
        loops.append(asyncio.get_running_loop())
        return "x"

    await session(tiny, "exact").arun(web(run), TASK)
    assert loops == [asyncio.get_running_loop()]


def test_an_asynchronous_tool_is_tried_again_and_times_out(tiny: LocalEngine) -> None:
    ended = []

    async def run(texts: Mapping[str, str]) -> str:
        try:
            return await forever(texts)
        finally:
            ended.append(asyncio.current_task().cancelling())

    graph = web(run, timeout_s=0.02, retries=1, backoff_s=0.001)
    with pytest.raises(NodeFailed, match=r"after 2 attempts: .*timeout of 0\.02 s"):
        answered(tiny, "exact", graph)
    assert ended == [1, 1], "it was cancelled, not left behind"


async def test_cancelling_a_run_cancels_its_asynchronous_tools(tiny: LocalEngine) -> None:
    began, ended = asyncio.Event(), []

    async def run(texts: Mapping[str, str]) -> str:
        began.set()
        try:
            return await forever(texts)
        finally:
            await asyncio.sleep(0)  # its clean-up is waited for
            ended.append("cleaned up")

    running = asyncio.create_task(session(tiny, "exact").arun(web(run), TASK))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["cleaned up"]


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no connection"), "web.*2 attempts.*no connection"),
        (asyncio.CancelledError(), "cancelled from inside|CancelledError"),
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration(), "StopIteration"),
        (None, "a text, not 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_tool_raises_or_returns_fails_its_node(
    tiny: LocalEngine, error: BaseException | None, said: str, kind: str
) -> None:
    def run(texts: Mapping[str, str]) -> Any:
        if error is not None:
            raise error
        return 3

    async def later(texts: Mapping[str, str]) -> Any:
        return run(texts)

    graph = web(later if kind == "asynchronous" else run, retries=1, backoff_s=0.001)
    with session(tiny, "exact") as active:
        with pytest.raises(NodeFailed, match=said):
            active.run(graph, TASK)
        assert active.run(chain(agent("a")), TASK).answer, "the session goes on"


def test_an_asynchronous_post_processing_is_awaited(tiny: LocalEngine) -> None:
    async def shout(text: str) -> str:
        await asyncio.sleep(0)
        return text.upper()

    plain, loud = (answered(tiny, "exact", chain(agent("a", post=post))) for post in (str, shout))
    assert loud.answer == plain.answer.upper()
