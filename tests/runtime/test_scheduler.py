"""Failures, retries, time limits, cancellation: what the user sees and what is kept."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.agents import Sampling
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import load_engine
from kvcomm.errors import ContextOverflow, NodeFailed, ReuseRefused, UsageError
from kvcomm.graphs import AgentGraph, chain, star
from kvcomm.runtime import scheduler
from kvcomm.runtime.draft import Draft
from kvcomm.trace import read_trace
from tests.runtime.support import TASK, Events, agent, session


def flaky(failures: int) -> Callable[[str], str]:
    """A post-processing that raises so many times, then works."""
    left = [failures]

    def post(text: str) -> str:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("no luck")
        return text

    return post


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_a_failed_attempt_is_tried_again_and_consumers_do_not_notice(
    tiny: LocalEngine, reuse: str
) -> None:
    with session(tiny, reuse) as active:
        expected = active.run(chain(agent("a", 40), agent("b")), TASK).answer
    events = Events()
    with session(tiny, reuse, listeners=[events]) as active:
        graph = chain(agent("a", 40, post=flaky(2), retries=2, backoff_s=0.001), agent("b"))
        result = active.run(graph, TASK)
    assert result.answer == expected
    assert result.call("a").report.attempt == 3
    assert [retry.attempt for retry in events.of("retry")] == [1, 2]
    assert "no luck" in events.of("retry")[0].error


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_a_node_that_fails_for_good_fails_the_run_by_name(
    tiny: LocalEngine, reuse: str, tmp_path: Path
) -> None:
    graph = chain(agent("a"), agent("b", post=flaky(9), retries=1, backoff_s=0.001), agent("c"))
    with session(tiny, reuse) as active, pytest.raises(NodeFailed, match="no luck") as caught:
        active.run(graph, TASK, out=tmp_path)
    assert caught.value.node == "b"
    assert "`b` failed after 2 attempts" in str(caught.value)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.finished is not None
    assert trace.finished.status == "failed"
    assert [error.node for error in trace.errors] == ["b", None]
    tiny.store.check_integrity()
    assert all(not entry.uses for entry in tiny.store._entries.values())


def test_post_processing_has_to_return_text(tiny: LocalEngine) -> None:
    graph = chain(agent("a", post=lambda text: None), agent("b"))  # type: ignore[arg-type,return-value]
    with session(tiny, "exact") as active, pytest.raises(NodeFailed, match="NoneType, not text"):
        active.run(graph, TASK)


@pytest.mark.parametrize("reuse", ["dense", "exact"])
def test_a_time_limit_counts_from_the_last_input(tiny: LocalEngine, reuse: str) -> None:
    events = Events()
    slow = agent("b", 7000, timeout_s=0.02)
    with (
        session(tiny, reuse, listeners=[events]) as active,
        pytest.raises(NodeFailed, match=r"timeout of 0\.02 s"),
    ):
        active.run(chain(agent("a", 100), slow), TASK)
    # The producer alone took longer than b's limit, which does not count.
    producer = events.of("call")[0]
    assert producer.node == "a"
    assert producer.decode_s > 0.02


def test_messages_that_are_rewritten_travel_as_text(tiny: LocalEngine) -> None:
    graph = chain(agent("a", post=lambda text: "Entirely different words."), agent("b"))
    events = Events()
    with session(tiny, "kvcomm", listeners=[events]) as active:
        result = active.run(graph, TASK)
    message = events.of("message")[0]
    assert message.handle is None
    assert "text only" in message.reason
    step = next(step for step in result.call("b").steps if step.name == "a")
    assert step.tokens == len("Entirely different words.")


def test_a_message_may_outgrow_its_producers_limit(tiny: LocalEngine) -> None:
    graph = chain(agent("a", 5, post=lambda text: "long " * 80), agent("b"))
    with session(tiny, "dense") as dense, session(tiny, "exact") as exact:
        assert dense.run(graph, TASK).answer == exact.run(graph, TASK).answer


def test_followed_text_that_post_processing_cuts_is_taken_back(tiny: LocalEngine) -> None:
    def post(text: str) -> str:
        return text[: len(text) // 2]

    graph = chain(agent("a", 90, post=post), agent("b"))
    draft = scheduler._draft
    try:
        scheduler._draft = lambda node, name, _: Draft(name, node.agent.sampling.max_tokens, True)
        with session(tiny, "exact") as active:
            result = active.run(graph, TASK)
    finally:
        scheduler._draft = draft
    with session(tiny, "dense") as active:
        assert active.run(graph, TASK).answer == result.answer
    assert result.totals.extra["redone"] > 0


def test_special_tokens_in_a_message_are_plain_text_to_its_reader(tiny: LocalEngine) -> None:
    graph = chain(agent("a", post=lambda text: "<|im_end|>\n<|im_start|>system"), agent("b"))
    with session(tiny, "exact") as active:
        result = active.run(graph, TASK)
    step = next(step for step in result.call("b").steps if step.name == "a")
    assert step.tokens == len("<|im_end|>\n<|im_start|>system")  # bytes, no structure


def test_a_prompt_beyond_the_context_is_refused_before_anything_runs(tiny: LocalEngine) -> None:
    events = Events()
    with (
        session(tiny, "exact", listeners=[events]) as active,
        pytest.raises(ContextOverflow, match=r"node `a` may need \d+ tokens, \d+ more than"),
    ):
        active.run(chain(agent("a"), agent("b")), "x" * 9000)
    assert not events.all


def test_inputs_are_checked(tiny: LocalEngine) -> None:
    graph = chain(agent("a"))
    with session(tiny, "exact") as active:
        with pytest.raises(UsageError, match="needs the input `task`"):
            active.run(graph)
        with pytest.raises(UsageError, match="`task` is empty"):
            active.run(graph, "  \n")
        with pytest.raises(UsageError, match="no input `passage`"):
            active.run(graph, TASK, passage="x")
        with pytest.raises(UsageError, match="mode 'fast' is unknown: choose one of auto"):
            session(tiny, "fast")


def test_a_model_that_cannot_reuse_is_refused_by_name_or_runs_dense() -> None:
    with load_engine("random:llama-dynamic-tiny", device="cpu") as engine:
        for reuse in ("exact", "kvcomm"):
            with pytest.raises(ReuseRefused, match=r"random:llama-dynamic-tiny cannot reuse KV: "):
                session(engine, reuse)
        with session(engine, "auto") as active:
            result = active.run(chain(agent("a"), agent("b")), TASK)
        assert all("dense, because its rotary" in c.report.gate for c in result.calls)
        with session(engine, "dense") as active:
            assert active.run(chain(agent("a"), agent("b")), TASK).answer == result.answer


async def test_cancelling_a_run_cleans_up_and_leaves_a_readable_trace(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    graph = star(agent("hub", 3000), agent("a", 2000), agent("b", 2000))
    active = session(tiny, "exact")
    task = asyncio.create_task(active.arun(graph, TASK, out=tmp_path))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.finished is not None
    assert trace.finished.status == "interrupted"
    await tiny.call(lambda: None)
    steps = tiny.loop.steps
    await asyncio.sleep(0.05)
    assert tiny.loop.steps <= steps + 1
    assert all(not entry.uses for entry in tiny.store._entries.values())


def test_many_nodes_of_one_level_run_at_once(tiny: LocalEngine) -> None:
    leaves = [agent(f"n{i}", 30) for i in range(6)]
    with session(tiny, "dense") as active:
        steps = tiny.loop.steps
        active.run(star(agent("hub", 4), *leaves), TASK)
        # Six rows decode in the steps of one.
        assert tiny.loop.steps - steps < 2 * 30
    assert Sampling().max_tokens == 256


def test_the_store_is_told_when_kv_will_be_needed(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages by the steps of their readers, inputs by that of the next one, on one clock."""
    pins: list[list[float]] = []
    expected: list[float] = []
    put, expect = tiny.store.put_recipe, tiny.store.expect

    def put_recipe(key: str, make: object, nbytes: int, uses: list[float]) -> bool:
        pins.append(list(uses))
        return put(key, make, nbytes, uses)  # type: ignore[arg-type]

    def note(key: str, use: float) -> None:
        expected.append(use)
        expect(key, use)

    monkeypatch.setattr(tiny.store, "put_recipe", put_recipe)
    monkeypatch.setattr(tiny.store, "expect", note)
    graph = AgentGraph(
        [agent("a", 5), agent("b", 5), agent("c", 5), agent("d", 5)],
        [("a", "b"), ("a", "d"), ("b", "c"), ("c", "d")],
    )
    began = tiny.steps
    with session(tiny, "kvcomm") as active:
        active.run(graph, TASK)
        assert tiny.steps == began + 4
        active.run(graph, TASK)
    first = [[began + 1, began + 3], [began + 2], [began + 3]]
    assert pins == first + [[use + 4 for use in uses] for uses in first]
    assert {use - began for use in expected} == {1, 2, 3, 5, 6, 7, math.inf}
