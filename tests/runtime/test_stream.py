"""Streams: what they yield beside text, and that leaving one ends its run."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kvcomm
from kvcomm import Delta, NodeEnd, NodeError, NodeStart, Retry, RunStart, ToolCall, ToolResult
from kvcomm.agents import Agent, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import NodeFailed, RunCancelled
from kvcomm.graphs import AgentGraph, chain
from kvcomm.runtime.result import Result
from kvcomm.session import Session
from kvcomm.trace import read_trace
from tests.runtime.support import ENDLESS, TASK, agent, check_at_rest, flaky, session


def test_a_stream_tells_of_nodes_tools_and_their_order(tiny: LocalEngine, tmp_path: Path) -> None:
    """And takes what `run` takes."""
    web = Tool("web", lambda texts: "Spiders have eight legs.")
    first = Agent("a", prompt="{task} {web}", sampling=agent("a").sampling)
    graph = AgentGraph([web, first, agent("b")], [("web", "a"), ("a", "b")])
    with session(tiny, "exact") as active:
        *items, result = active.stream(graph, TASK, seed=5, out=tmp_path)
    assert isinstance(result, Result)
    assert read_trace(tmp_path / "trace.jsonl").started.seed == 5
    assert items[0] == RunStart(tmp_path.name, tmp_path)
    at = items.index
    assert at(ToolCall("web", 1)) < at(ToolResult("web", {"web": "Spiders have eight legs."}))
    for call in result.calls:
        end = NodeEnd(call.node, call.text)
        pieces = [n for n, i in enumerate(items) if isinstance(i, Delta) and i.node == call.node]
        assert at(NodeStart(call.node, 1)) < pieces[0] <= pieces[-1] < at(end)
        assert "".join(items[n].text for n in pieces) == call.text
    kinds = (RunStart, NodeStart, NodeEnd, Delta, ToolCall, ToolResult)
    assert all(isinstance(item, kinds) for item in items)


def test_failures_are_told_and_behind_a_retry_all_is_said_again(tiny: LocalEngine) -> None:
    """A node that fails for good is told before the error that ends the stream."""
    care = {"retries": 1, "backoff_s": 0.001}
    with session(tiny, "exact") as active:
        *items, result = active.stream(chain(agent("a", 9, post=flaky(1), **care)), TASK)
        skipped = chain(agent("a", post=flaky(9), on_error="skip"), agent("b"))
        (error,) = [item for item in active.stream(skipped, TASK) if isinstance(item, NodeError)]
        failing = []
        with pytest.raises(NodeFailed, match="no luck"):
            failing.extend(active.stream(chain(agent("a", post=flaky(9))), TASK))
    assert isinstance(result, Result)
    kinds = [type(item) for item in items]
    retry, text = kinds.index(Retry), result.call("a").text
    for part in (items[:retry], items[retry:]):
        assert "".join(item.text for item in part if isinstance(item, Delta)) == text
    assert "no luck" in items[retry].error
    assert (error.node, error.instead) == ("a", "(a gave no answer.)")
    assert isinstance(failing[-1], NodeError)


def first_word(stream: Iterator[object]) -> None:
    """Take items until an agent has said something."""
    next(item for item in stream if isinstance(item, Delta))


def interrupted(folder: Path) -> bool:
    """Whether the trace is complete, and says that the run was interrupted."""
    finished = read_trace(folder / "trace.jsonl").finished
    return finished is not None and finished.status == "interrupted"


def close(stream: Iterator[object]) -> None:
    stream.close()


def interrupt(stream: Iterator[object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())


def leave(stream: Iterator[object]) -> None:
    """Nobody holds it any more."""


@pytest.mark.parametrize("end", [close, interrupt, leave])
def test_ending_a_stream_ends_its_run_and_waits_for_it(
    tiny: LocalEngine, tmp_path: Path, end: Callable[[Iterator[object]], None]
) -> None:
    """Other runs of the session go on; of a chat it was no turn."""
    with session(tiny, "exact") as active:
        kept = active.stream(chain(agent("a", 60)), TASK)
        first_word(kept)
        chat = active.chat(ENDLESS)
        stream = chat.stream(TASK, out=tmp_path)
        first_word(stream)
        end(stream)
        del stream
        gc.collect()
        # At once: the run is over.
        assert interrupted(tmp_path)
        assert chat.turns == []
        assert isinstance(list(kept)[-1], Result)
        check_at_rest(tiny)


def test_closing_the_session_ends_its_streams_and_runs(tiny: LocalEngine, tmp_path: Path) -> None:
    begun = threading.Event()
    active = session(tiny, "exact")
    stream = active.stream(ENDLESS, TASK, out=tmp_path / "stream")
    first_word(stream)
    active._listeners = (lambda event: begun.set() if event.kind == "node" else None,)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(active.run, ENDLESS, TASK, out=tmp_path / "run")
        assert begun.wait(60)
        active.close()
    assert isinstance(run.exception(), RunCancelled)
    assert interrupted(tmp_path / "stream")
    assert interrupted(tmp_path / "run")
    with pytest.raises(RunCancelled, match="session was closed"):
        list(stream)


def test_a_stream_that_is_left_on_the_sessions_own_thread(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    """There is nobody to wait for there: the run is cancelled, and ends a little later."""
    over = threading.Event()
    ends = [lambda event: over.set() if event.kind == "end" else None]
    with session(tiny, "exact", listeners=ends) as active:
        stream = active.stream(ENDLESS, TASK, out=tmp_path)
        first_word(stream)

        async def closing() -> None:
            close(stream)

        active._loop().run(closing())
        assert over.wait(60)
    assert interrupted(tmp_path)


async def test_both_kinds_of_streams_are_alike(tiny: LocalEngine, tmp_path: Path) -> None:
    graph = chain(agent("a"))
    with session(tiny, "exact") as active:
        one = [item async for item in active.astream(graph, TASK)]
        other = await asyncio.to_thread(lambda: list(active.stream(graph, TASK)))
        assert one[1:-1] == other[1:-1]
        stream = active.astream(ENDLESS, TASK, out=tmp_path)
        async for item in stream:
            if isinstance(item, Delta):
                break
        await stream.aclose()
    assert interrupted(tmp_path)


def test_the_events_are_exported() -> None:
    assert kvcomm.Session is Session
    for name in kvcomm.__all__:
        assert getattr(kvcomm, name) is not None
    with pytest.raises(AttributeError):
        kvcomm.nothing  # noqa: B018
