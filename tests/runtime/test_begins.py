"""Answers that continue a given beginning, plain completions, and texts that end an answer."""

from __future__ import annotations

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
def test_the_answer_continues_its_beginning(smol: LocalEngine, chat: bool) -> None:
    asked = "The capital of Italy is Rome. Name it."
    graph, ids = begun(smol, asked, chat=chat)
    wrapped = smol.codec.chat("", asked) if chat else asked
    assert ids == smol.codec.encode_structured(wrapped + BEGINS)[0]
    with session(smol, "exact") as active:
        *items, result = active.stream(graph, TASK)
    call = result.calls[0]
    assert call.text == BEGINS + smol.codec.decode(generate(smol, ids, 12))
    assert call.report.prompt_tokens == len(ids)
    assert "".join(item.text for item in items if isinstance(item, Delta)) == call.text


def test_a_beginning_may_be_left_out_of_the_message(tiny: LocalEngine) -> None:
    graph, _ = begun(tiny, "Name it.")
    bare = graph.with_agents(lambda a: replace(a, keep_begins=False))
    kept, cut = (answered(tiny, "exact", g).calls[0] for g in (graph, bare))
    assert kept.text == BEGINS + cut.text
    assert kept.message.ids == [*tiny.codec.encode(BEGINS), *cut.message.ids]
    assert kept.report.output_tokens == cut.report.output_tokens


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_readers_say_the_same_in_every_exact_mode(
    tiny: LocalEngine, keep: bool, chat: bool
) -> None:
    fields = {"begins": BEGINS, "keep_begins": keep, "chat": chat}
    said = in_exact_modes(tiny, fully_connected(*(agent(n, 20, **fields) for n in "abc")))
    assert said[0] == said[1] == said[2]


def in_exact_modes(engine: LocalEngine, graph: AgentGraph) -> list[list[str]]:
    """What the agents say: dense, exact, and exact once more, with what is cached by then."""
    return [
        [call.text for call in answered(engine, reuse, graph).calls]
        for reuse in ("dense", "exact", "exact")
    ]


def test_realigned_messages_with_a_beginning_are_right(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchors are of this very prompt, so realigned answers are dense's."""
    graph = chain(agent("a", begins=BEGINS), agent("b", begins=BEGINS), agent("c"))
    monkeypatch.setattr("kvcomm.reuse.offsets.anchors.GAMMA", 10.0)
    expected = [call.text for call in answered(tiny, "dense", graph).calls]
    with session(tiny, "kvcomm") as active:
        result = [active.run(graph, TASK) for _ in range(3)][-1]
    assert result.call("b").total("realigned") > 0
    assert [call.text for call in result.calls] == expected
    sent = result.call("a").message
    assert sent.covered == sent.tokens - 1, "all tokens but the last, which was never computed"


def test_control_tokens_in_a_beginning_are_text(tiny: LocalEngine) -> None:
    graph = chain(Agent("a", prompt="x", begins="<|im_end|>"))
    template = graph.template("a", tiny.codec)
    assert tiny.codec.decode(template.begins) == "<|im_end|>"
    assert not tiny.codec.special_ids.intersection(template.begins)


# --- texts that end an answer ---


def test_an_answer_ends_before_a_stop_text(smol: LocalEngine) -> None:
    plain = Agent("a", prompt="Count from 1 to 9.", sampling=Sampling(max_tokens=24))
    with session(smol, "exact") as active:
        whole = active.run(chain(plain), TASK).calls[0]
        text = whole.text
        for stop in (text[9:12], text[4], text[-1], text[5:14]):
            sampling = Sampling(max_tokens=24, stop=("not there", stop))
            call = active.run(chain(replace(plain, sampling=sampling)), TASK).calls[0]
            assert call.text == text[: text.index(stop)]
            assert call.report.stop == "stop"
            assert call.report.output_tokens <= whole.report.output_tokens


def test_readers_of_a_stopped_message_say_what_dense_says(tiny: LocalEngine) -> None:
    text = answered(tiny, "dense", chain(agent("a", 60))).calls[0].text
    stop = next(text[i : i + 2] for i in range(20, 60) if text[i : i + 2].isascii())
    first = agent("a", sampling=Sampling(max_tokens=60, stop=(stop,)))
    said = in_exact_modes(tiny, fully_connected(first, agent("b", 30), agent("c")))
    assert said[0] == said[1] == said[2]
    assert said[0][0] == text[: text.index(stop)]
    check_at_rest(tiny)


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
