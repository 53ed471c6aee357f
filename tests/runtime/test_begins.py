"""Answers that continue a given beginning, plain completions, and texts that end an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph, chain, fully_connected
from kvcomm.runtime.stopping import StopTexts, before
from kvcomm.runtime.stream_events import Delta
from tests.codecs import byte_codec
from tests.engine.support import generate
from tests.runtime.support import TASK, agent, answered, check_at_rest, session

BEGINS = "Answer:"


def begun(engine: LocalEngine, prompt: str, **fields: Any) -> tuple[AgentGraph, list[int]]:
    """One agent that continues `BEGINS`, and the ids of its whole prompt."""
    graph = chain(
        Agent("a", prompt=prompt, begins=BEGINS, sampling=Sampling(max_tokens=12), **fields)
    )
    template = graph.template("a", engine.codec)
    return graph, [i for segment in template.fill({}) for i in segment.ids]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("reuse", ["dense", "exact"])
def test_the_answer_continues_its_beginning(smol: LocalEngine, reuse: str, chat: bool) -> None:
    graph, ids = begun(smol, "The capital of Italy is Rome. Name it.", chat=chat)
    call = answered(smol, reuse, graph).calls[0]
    wrapped = smol.codec.chat("", "The capital of Italy is Rome. Name it.") if chat else ""
    plain, _ = smol.codec.encode_structured(
        f"{wrapped}{BEGINS}" if chat else f"The capital of Italy is Rome. Name it.{BEGINS}"
    )
    assert ids == plain
    assert call.text == BEGINS + smol.codec.decode(generate(smol, ids, 12))
    assert call.report.prompt_tokens == len(ids)


def test_a_beginning_may_be_left_out_of_the_message(tiny: LocalEngine) -> None:
    graph, _ = begun(tiny, "Name it.")
    bare = graph.with_agents(lambda a: replace(a, keep_begins=False))
    kept, cut = (answered(tiny, "exact", g).calls[0] for g in (graph, bare))
    assert kept.text == BEGINS + cut.text
    assert kept.message.ids == [*tiny.codec.encode(BEGINS), *cut.message.ids]
    assert kept.report.output_tokens == cut.report.output_tokens


def readers(**fields: Any) -> AgentGraph:
    """A chain in which each message begins as given."""
    return chain(*(agent(name, begins="So: ", **fields) for name in "abc"))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_readers_say_the_same_in_every_exact_mode(
    tiny: LocalEngine, keep: bool, chat: bool
) -> None:
    graph = fully_connected(
        *(agent(n, 20, begins=BEGINS, keep_begins=keep, chat=chat) for n in ("a", "b", "c"))
    )
    said = []
    for reuse in ("dense", "exact", "exact"):
        with session(tiny, reuse) as active:
            said.append([call.text for call in active.run(graph, TASK).calls])
    assert said[0] == said[1] == said[2]


def test_the_kv_of_a_beginning_is_handed_over(tiny: LocalEngine) -> None:
    graph = chain(agent("a", begins=BEGINS), agent("b"))
    with session(tiny, "kvcomm") as active:
        sent = active.run(graph, TASK).call("a").message
    assert sent.text.startswith(BEGINS)
    # All tokens but the last, which was never computed.
    assert sent.covered == sent.tokens - 1


def test_realigned_messages_with_a_beginning_are_right(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchors are of this very prompt, so realigned answers are dense's."""
    graph = chain(agent("a", begins=BEGINS), agent("b", begins=BEGINS), agent("c"))
    monkeypatch.setattr("kvcomm.reuse.offsets.anchors.GAMMA", 10.0)
    with session(tiny, "dense") as active:
        expected = [call.text for call in active.run(graph, TASK).calls]
    with session(tiny, "kvcomm") as active:
        for _ in range(3):
            result = active.run(graph, TASK)
    assert result.call("b").total("realigned") > 0
    assert [call.text for call in result.calls] == expected


def test_streams_show_the_beginning_first(tiny: LocalEngine) -> None:
    graph, _ = begun(tiny, "Name it.")
    with session(tiny, "exact") as active:
        pieces = list(active.stream(graph, TASK))
    assert "".join(p.text for p in pieces if isinstance(p, Delta)) == pieces[-1].answer


def test_a_beginning_that_ends_with_a_space_is_refused() -> None:
    with pytest.raises(UsageError, match=r"agent `a`: begins 'Answer: ' ends with a space"):
        Agent("a", begins="Answer: ")


def test_control_tokens_in_a_beginning_are_text(tiny: LocalEngine) -> None:
    graph = chain(Agent("a", prompt="x", begins="<|im_end|>"))
    template = graph.template("a", tiny.codec)
    assert tiny.codec.decode(template.begins) == "<|im_end|>"
    assert not tiny.codec.special_ids.intersection(template.begins)


# --- texts that end an answer ---


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_an_answer_ends_before_a_stop_text(smol: LocalEngine, reuse: str) -> None:
    plain = Agent("a", prompt="Count from 1 to 9.", sampling=Sampling(max_tokens=24))
    with session(smol, reuse) as active:
        whole = active.run(chain(plain), TASK)
        text = whole.calls[0].text
        for stop in (text[9:12], text[4], text[-1], text[5:14]):
            sampling = Sampling(max_tokens=24, stop=("not there", stop))
            result = active.run(chain(replace(plain, sampling=sampling)), TASK)
            call = result.calls[0]
            assert call.text == text[: text.index(stop)]
            assert call.report.stop == "stop"
            assert call.report.output_tokens <= whole.calls[0].report.output_tokens


def test_readers_of_a_stopped_message_say_what_dense_says(tiny: LocalEngine) -> None:
    with session(tiny, "dense") as active:
        text = active.run(chain(agent("a", 60)), TASK).calls[0].text
    stop = next(text[i : i + 2] for i in range(20, 60) if text[i : i + 2].isascii())
    first = replace(agent("a"), sampling=Sampling(max_tokens=60, stop=(stop,)))
    graph = fully_connected(first, agent("b", 30), agent("c"))
    said = []
    for reuse in ("dense", "exact", "exact"):
        calls = answered(tiny, reuse, graph).calls
        assert calls[0].text == text[: text.index(stop)]
        said.append([call.text for call in calls])
    assert said[0] == said[1] == said[2]


def test_a_stop_text_is_not_sought_in_the_beginning(tiny: LocalEngine) -> None:
    graph, _ = begun(tiny, "Name it.")
    stopped = graph.with_agents(
        lambda a: replace(a, sampling=Sampling(max_tokens=12, stop=("An",)))
    )
    with session(tiny, "exact") as active:
        assert active.run(stopped, TASK).answer == active.run(graph, TASK).answer


def test_a_stop_text_is_found_over_tokens_and_inside_them() -> None:
    codec = byte_codec()
    stops = StopTexts(codec, ("é\n", "end"))
    assert [stops.end(token) for token in codec.encode("the en é \n é")] == [False] * 14
    assert [stops.end(token) for token in codec.encode("\n")] == [True]


@pytest.mark.parametrize(
    ("text", "begun", "left"),
    [
        ("a\nb", "", "a"),
        ("a", "", "a"),
        ("\nb", "", ""),
        ("a\nb\nc", "a\n", "a\nb"),
        ("x END y\n", "", "x "),
    ],
)
def test_a_text_is_cut_before_the_first_stop(text: str, begun: str, left: str) -> None:
    assert before(("\n", "END"), text, begun) == left


@pytest.mark.parametrize("stop", ["\n", ("",), (3,), ["\n"]])
def test_stops_that_are_no_texts_are_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match=r"must be a tuple of texts that are not empty"):
        Sampling(stop=stop)


def test_an_engine_can_go_on_after_a_stop(engine_of: Callable[..., LocalEngine]) -> None:
    engine = engine_of("random:llama-tiny", "float64")
    with session(engine, "exact") as active:
        text = active.run(chain(agent("a", 40)), TASK).calls[0].text
        stopped = replace(agent("a"), sampling=Sampling(max_tokens=40, stop=(text[3],)))
        for _ in range(20):
            said = active.run(chain(stopped), TASK).calls[0].text
            assert said == text[: text.index(text[3])]
        assert active.run(chain(agent("a", 40)), TASK).calls[0].text == text
    check_at_rest(engine)
