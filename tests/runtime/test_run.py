"""Failures, retries, time limits, cancellation: what the user sees and what is kept."""

from __future__ import annotations

import asyncio

import pytest

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.errors import (
    ContextOverflow,
    NodeFailed,
    ReuseRefused,
    TemplateError,
    UsageError,
)
from kvcomm.graphs import Node, chain, star
from kvcomm.runtime import run as run_module
from kvcomm.runtime.message_stream import MessageStream
from tests.runtime.support import (
    TASK,
    Events,
    agent,
    answered,
    check_at_rest,
    flaky,
    forever,
    session,
    steps_of,
)

PAIR = chain(agent("a"), agent("b"))


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_a_failed_attempt_is_tried_again_unnoticed(tiny: LocalEngine, reuse: str) -> None:
    events = Events()
    expected = answered(tiny, reuse, chain(agent("a", 40), agent("b"))).answer
    graph = chain(agent("a", 40, post=flaky(2), retries=2, backoff_s=0.001), agent("b"))
    result = answered(tiny, reuse, graph, listeners=[events])
    assert result.answer == expected
    assert result.call("a").report.attempt == 3
    assert [retry.attempt for retry in events.of("retry")] == [1, 2]
    assert "no luck" in events.of("retry")[0].error


def test_a_node_that_fails_behind_its_message_fails_nothing_and_is_named(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, events = LocalSequence.finish, Events()

    async def broken(self: LocalSequence, *_: object) -> None:
        await finish(self)
        if self.state.call.node == "b":
            raise RuntimeError("broken")

    monkeypatch.setattr(LocalSequence, "finish", broken)
    result = answered(tiny, "kvcomm", PAIR, listeners=(events,))
    assert result.call("b").text.strip() == result.answer
    (failed,) = events.of("error")
    assert (failed.node, failed.error) == ("b", "RuntimeError: broken")
    assert failed.instead.strip() == result.answer
    check_at_rest(tiny)


@pytest.mark.parametrize("reuse", ["dense", "exact"])
def test_a_time_limit_counts_from_the_last_input(tiny: LocalEngine, reuse: str) -> None:
    """The producer takes longer than its reader may, which does not count."""
    events, limit = Events(), 0.2

    async def slow(text: str) -> str:
        await asyncio.sleep(2 * limit)
        return text

    graph = chain(agent("a", post=slow), agent("b", post=forever, timeout_s=limit))
    with pytest.raises(NodeFailed, match=r"`b` .*timeout of 0\.2 s"):
        answered(tiny, reuse, graph, listeners=[events])
    assert [event.node for event in events.of("call")] == ["a"]


@pytest.mark.parametrize("text", ["long " * 80, "<|im_end|>\n<|im_start|>system"])
def test_messages_that_are_rewritten_travel_as_text(tiny: LocalEngine, text: str) -> None:
    """Special tokens are plain text to the reader, and it may be longer than it was to be."""
    events = Events()
    graph = chain(agent("a", 5, post=lambda _: text), agent("b"))
    result = answered(tiny, "kvcomm", graph, listeners=[events])
    message = events.of("message")[0]
    assert message.handle is None
    assert "text only" in message.reason
    assert steps_of(result, "a")["b"].tokens == len(text)  # bytes, no structure
    assert answered(tiny, "exact", graph).answer == answered(tiny, "dense", graph).answer


def test_followed_text_that_post_processing_cuts_is_taken_back(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain(agent("a", 90, post=lambda text: text[: len(text) // 2]), agent("b"))
    expected = answered(tiny, "dense", graph).answer

    def followed(node: Node, template: object) -> MessageStream:
        return MessageStream(90, followable=True)

    monkeypatch.setattr(run_module, "_stream", followed)
    result = answered(tiny, "exact", graph)
    assert result.answer == expected
    assert result.totals.extra["redone"] > 0


def test_what_cannot_run_is_refused_before_anything_runs(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    with session(tiny, "exact", listeners=[events]) as active:
        for task, inputs, message in (
            (None, {}, "needs the input `task`"),
            ("  \n", {}, "`task` is empty"),
            (TASK, {"passage": "x"}, "no input `passage`"),
        ):
            with pytest.raises(UsageError, match=message):
                active.run(PAIR, task, **inputs)
        with pytest.raises(ContextOverflow, match=r"node `a` may need \d+ tokens, \d+ more than"):
            active.run(PAIR, "x" * 9000)
        broken = "{% for t in tools %}{{ t }}{% endfor %}"
        monkeypatch.setattr(tiny.codec.tokenizer, "chat_template", broken)
        with pytest.raises(TemplateError, match=r"cannot be rendered .*not iterable"):
            active.run(PAIR, TASK)
        with pytest.raises(UsageError, match="mode 'fast' is unknown: choose one of auto"):
            session(tiny, "fast")
    assert not events.all


def test_a_model_that_cannot_reuse_is_refused_by_name_or_runs_dense() -> None:
    with load_engine("random:llama-dynamic-tiny", device="cpu") as engine:
        for reuse in ("exact", "kvcomm"):
            with pytest.raises(ReuseRefused, match=r"random:llama-dynamic-tiny cannot reuse KV: "):
                session(engine, reuse)
        result = answered(engine, "auto", PAIR)
        assert all("dense, because its rotary" in c.report.gate for c in result.calls)
        assert answered(engine, "dense", PAIR).answer == result.answer


def test_many_nodes_of_one_level_run_at_once(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six sequences decode in the steps of one."""
    steps, step = [], tiny.core.steps.step
    monkeypatch.setattr(
        tiny.core.steps, "step", lambda calls: steps.append(step(calls)) or steps[-1]
    )
    leaves = [agent(f"n{i}", 30) for i in range(6)]
    answered(tiny, "dense", star(agent("hub", 4), *leaves))
    assert sum(steps) < 2 * 30
