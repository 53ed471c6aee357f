"""Tools in a graph: their texts as inputs, as messages, and what the trace says of them."""

from __future__ import annotations

import asyncio
import io
import time
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
from kvcomm.trace.read import find_run, read_trace
from kvcomm.trace.show import show_run
from tests.runtime.support import TASK, Events, agent, auto, session

PASSAGES = ("Spiders have eight legs, and no wings at all.", "Cats sleep most of the day.")


def reader(name: str, **fields: Any) -> Agent:
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{passage1}\n\n{passage2}\n\n{task}\n\n{messages}\n\nAnswer.",
        sampling=Sampling(max_tokens=10),
        **fields,
    )


def search(texts: Mapping[str, str]) -> tuple[str, ...]:
    assert texts["task"].startswith(TASK[:20])
    return PASSAGES


SEARCH = Tool("search", search, outputs=("passage1", "passage2"))
READERS = AgentGraph(
    [SEARCH, reader("a"), reader("b"), agent("c")],
    [("search", "a"), ("search", "b"), ("a", "c"), ("b", "c")],
)
COUNTER = Tool("counter", lambda texts: f"The message has {len(texts['a'])} characters.")
COUNTED = AgentGraph(
    [agent("a", 20), COUNTER, agent("b")], [("a", "counter"), ("a", "b"), ("counter", "b")]
)


@pytest.mark.parametrize("mode", ["dense", "exact", "kvcomm", "auto"])
@pytest.mark.parametrize("graph", [READERS, COUNTED], ids=["search", "counter"])
def test_every_mode_runs_and_keeps_its_books(
    tiny: LocalEngine, mode: str, graph: AgentGraph
) -> None:
    with session(tiny, mode) as active:
        for number in range(4):
            result = active.run(graph, f"{TASK} {number}")
            assert {call.node for call in result.calls} == set(graph.nodes) - {"search", "counter"}
            for call in result.calls:
                tokens = sum(step.tokens for step in call.steps)
                assert tokens == call.report.prompt_tokens
                assert all(s.computed + s.prefix + s.realigned == s.tokens for s in call.steps)


@pytest.mark.parametrize("graph", [READERS, COUNTED], ids=["search", "counter"])
def test_exact_answers_as_dense_does(tiny: LocalEngine, graph: AgentGraph) -> None:
    with session(tiny, "dense") as dense, session(tiny, "exact") as exact:
        assert dense.run(graph, TASK).answer == exact.run(graph, TASK).answer


def test_readers_see_each_text_as_a_placeholder_of_its_own(tiny: LocalEngine) -> None:
    with session(tiny, "exact") as active:
        result = active.run(READERS, TASK)
    for node in "ab":
        filled = [step.name for step in result.call(node).steps if step.segment == "placeholder"]
        assert filled == ["passage1", "passage2", "task"]


def test_kv_of_a_text_is_shared_by_its_readers_and_by_questions(tiny: LocalEngine) -> None:
    """Base KV is made once: the second reader, and the next question, find it."""
    with session(tiny, "kvcomm") as active:
        first = active.run(READERS, TASK)
        second = active.run(READERS, TASK + " And why?")
    assert first.totals.extra["base"] > sum(len(text) for text in PASSAGES) // 2
    made = sum(call.report.base_tokens for call in second.calls)
    # One token a character, and the header of the task's base; none of the passages.
    assert len(TASK + " And why?") <= made < len(TASK + " And why?") + 10


def test_auto_realigns_what_a_tool_found_once_it_has_learned(tiny: LocalEngine) -> None:
    """Passages in another order are no prefix of what was read before."""
    turns = iter(range(100))

    def shuffled(texts: Mapping[str, str]) -> list[str]:
        turn = next(turns)
        return [f"Passage {(turn + i) % 7}: {PASSAGES[0]} {PASSAGES[1]}" for i in range(2)]

    tool = Tool("search", shuffled, outputs=SEARCH.outputs)
    graph = AgentGraph([tool, *(READERS.nodes[n].agent for n in "abc")], READERS.edges)
    with auto(tiny, target_divergence=1e6) as active:
        results = [active.run(graph, f"{TASK} {number}") for number in range(12)]
    assert any(
        step.way == "realign" and step.name.startswith("passage")
        for result in results
        for call in result.calls
        for step in call.steps
    )


def test_the_clock_of_a_reader_starts_when_its_tool_is_done(tiny: LocalEngine) -> None:
    def slow(texts: Mapping[str, str]) -> tuple[str, ...]:
        time.sleep(0.3)
        return PASSAGES

    tool = Tool("search", slow, outputs=SEARCH.outputs)
    graph = AgentGraph([tool, reader("a")], [("search", "a")])
    with session(tiny, "exact") as active:
        report = active.run(graph, TASK).call("a").report
    assert report.ready_at >= 0.3
    assert report.ttft_s == pytest.approx(report.first_token_at - report.ready_at)


def test_text_beyond_the_limit_is_cut_and_the_trace_says_so(tiny: LocalEngine) -> None:
    heard = Events()
    tool = Tool("search", lambda texts: ["long " * 50, "short"], SEARCH.outputs, max_tokens=12)
    graph = AgentGraph([tool, reader("a")], [("search", "a")])
    with session(tiny, "exact", listeners=(heard,)) as active:
        result = active.run(graph, TASK)
    (event,) = heard.of("tool")
    assert event.cut == ["passage1"]
    assert event.tokens == {"passage1": 12, "passage2": 5}
    assert [step.tokens for step in result.call("a").steps if step.name == "passage1"] == [12]


def test_a_tool_that_fails_is_tried_again_and_then_fails_the_run(tiny: LocalEngine) -> None:
    tries: list[int] = []

    def broken(texts: Mapping[str, str]) -> str:
        tries.append(1)
        raise OSError("no connection")

    graph = AgentGraph([Tool("web", broken, retries=1), agent("a")], [("web", "a")])
    with (
        session(tiny, "exact") as active,
        pytest.raises(NodeFailed, match=r"web.*2 attempts.*no connection"),
    ):
        active.run(graph, TASK)
    assert len(tries) == 2


def test_a_tool_that_hangs_times_out(tiny: LocalEngine) -> None:
    def hangs(texts: Mapping[str, str]) -> str:
        time.sleep(1)
        return ""

    graph = AgentGraph([Tool("web", hangs, timeout_s=0.05), agent("a")], [("web", "a")])
    with session(tiny, "exact") as active, pytest.raises(NodeFailed, match=r"0\.05"):
        active.run(graph, TASK)


def test_graphs_with_tools_are_checked() -> None:
    with pytest.raises(GraphError, match="is a tool: let an agent have the last word"):
        AgentGraph([agent("a"), COUNTER], [("a", "counter")])
    with pytest.raises(GraphError, match="output `passage1` of tool `search`"):
        AgentGraph([SEARCH, reader("a")], [("search", "a")], inputs=("task", "passage1"))
    with pytest.raises(GraphError, match="receives a message from `search`"):
        AgentGraph([SEARCH, Agent("a", prompt="{task} {passage1}")], [("search", "a")])


def test_the_trace_shows_tools(tiny: LocalEngine, tmp_path: Path) -> None:
    with session(tiny, "exact") as active:
        active.run(READERS, TASK, out=tmp_path / "run")
    run = read_trace(find_run(str(tmp_path / "run")))
    assert [tool.node for tool in run.tools] == ["search"]
    assert {view.node for view in run.calls} == {"a", "b", "c"}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(show_run(run, segments=True))
    text = console.export_text()
    assert "search  a tool" in text
    assert "passage2 (27 tokens): Cats sleep most of the day." in text
    assert "did not finish" not in text


async def asked(texts: Mapping[str, str]) -> str:
    await asyncio.sleep(0)
    return f"You asked: {texts['task']}"


class Asked:
    """A tool with a connection of its own."""

    async def __call__(self, texts: Mapping[str, str]) -> str:
        return await asked(texts)


@pytest.mark.parametrize(
    "run", [asked, lambda texts: asked(texts), Asked(), partial(asked)], ids=lambda run: str(run)
)
def test_an_asynchronous_tool_is_awaited(tiny: LocalEngine, run: Any) -> None:
    def graph(tool: Tool) -> AgentGraph:
        return AgentGraph([tool, agent("a")], [("web", "a")])

    with session(tiny, "exact") as active:
        result = active.run(graph(Tool("web", run)), TASK)
        plain = active.run(graph(Tool("web", lambda texts: f"You asked: {TASK}")), TASK)
    assert result.answer == plain.answer


async def test_an_asynchronous_tool_runs_on_the_callers_event_loop(tiny: LocalEngine) -> None:
    loops = []

    async def web(texts: Mapping[str, str]) -> str:
        loops.append(asyncio.get_running_loop())
        return "x"

    await session(tiny, "exact").arun(
        AgentGraph([Tool("web", web), agent("a")], [("web", "a")]), TASK
    )
    assert loops == [asyncio.get_running_loop()]


def test_an_asynchronous_tool_is_tried_again_and_times_out(tiny: LocalEngine) -> None:
    ended = []

    async def web(texts: Mapping[str, str]) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        return ""

    tool = Tool("web", web, timeout_s=0.02, retries=1, backoff_s=0.001)
    graph = AgentGraph([tool, agent("a")], [("web", "a")])
    with (
        session(tiny, "exact") as active,
        pytest.raises(NodeFailed, match=r"after 2 attempts: .*timeout of 0\.02 s"),
    ):
        active.run(graph, TASK)
    assert ended == [1, 1], "it was cancelled, not left behind"


async def test_cancelling_a_run_cancels_its_asynchronous_tools(tiny: LocalEngine) -> None:
    began, ended = asyncio.Event(), []

    async def web(texts: Mapping[str, str]) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # its clean-up is waited for
            ended.append("cleaned up")
        return ""

    graph = AgentGraph([Tool("web", web), agent("a")], [("web", "a")])
    run = asyncio.create_task(session(tiny, "exact").arun(graph, TASK))
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended == ["cleaned up"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no connection"), "no connection"),
        (asyncio.CancelledError(), "cancelled from inside"),
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration(), "StopIteration"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_asynchronous_tool_raises_fails_its_node(
    tiny: LocalEngine, error: BaseException, said: str
) -> None:
    async def web(texts: Mapping[str, str]) -> str:
        raise error

    graph = AgentGraph([Tool("web", web), agent("a")], [("web", "a")])
    with session(tiny, "exact") as active:
        with pytest.raises(NodeFailed, match=said):
            active.run(graph, TASK)
        assert active.run(chain(agent("a")), TASK).answer, "the session goes on"


def test_an_asynchronous_tool_must_return_text_too(tiny: LocalEngine) -> None:
    async def web(texts: Mapping[str, str]) -> Any:
        return 3

    graph = AgentGraph([Tool("web", web), agent("a")], [("web", "a")])
    with session(tiny, "exact") as active, pytest.raises(NodeFailed, match="a text, not 3"):
        active.run(graph, TASK)


def test_an_asynchronous_post_processing_is_awaited(tiny: LocalEngine) -> None:
    async def shout(text: str) -> str:
        await asyncio.sleep(0)
        return text.upper()

    async def counts(text: str) -> Any:
        return len(text)

    with session(tiny, "exact") as active:
        said = active.run(chain(agent("a")), TASK).answer
        loud = active.run(chain(agent("a", post=shout)), TASK).call("a").text
        assert loud.strip() == said.upper()
        with pytest.raises(NodeFailed, match="returned int, not text"):
            active.run(chain(agent("a", post=counts)), TASK)
