"""Texts of any length and kind: a run answers and is shown, or says what is too long."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import ContextOverflow, UsageError
from kvcomm.graphs import AgentGraph, chain
from kvcomm.message import outgoing, well_formed
from kvcomm.trace import read_trace
from kvcomm.trace.text import plain, shorten
from tests.codecs import smol_codec
from tests.runtime.support import agent, answered, session

MODES = ("dense", "exact", "kvcomm", "auto")
TEXTS = {
    "NUL": "a\0b",
    "right to left": "\u200fשלום\u202e abc \u202c",
    "combining": "e" + "\u0301" * 200,
    "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 " * 8,
    "replacement": "\ufffd\ufffd",
    "escape": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "markup": "[bold]x[/] [/nope] :smile:",
    "one long word": "x" * 2000,
    "noncharacters": "\ufffe\uffff\ue000",
}
GRAPH = chain(agent("a", 6), agent("b", 6), agent("c", 6))


@pytest.mark.parametrize("what", TEXTS)
def test_any_text_is_answered_and_shown(cli: Callable, tiny, tmp_path: Path, what: str) -> None:
    result = answered(tiny, "exact", GRAPH, TEXTS[what], out=tmp_path / "run")
    assert len(result.calls) == 3
    run = read_trace(tmp_path / "run" / "trace.jsonl")
    assert run.started.inputs == {"task": TEXTS[what]}
    assert run.skipped == 0
    for argv in ((), ("--text",), ("--segments",), ("--json",)):
        assert cli("trace", "show", "run", *argv).code == 0


@pytest.mark.parametrize("mode", MODES)
def test_agents_and_tools_that_say_nothing_are_heard(tiny, mode: str) -> None:
    """A model that stops at once, a `post` that leaves nothing, and a tool that finds nothing."""
    stops = tuple(range(tiny.config.vocab_size))
    silent = Agent("silent", sampling=Sampling(max_tokens=4, stop_token_ids=stops))
    mute = Agent("mute", post=lambda text: "", sampling=Sampling(max_tokens=4))
    graph = chain(silent, Tool("find", lambda texts: ""), mute, agent("last", 4))
    with session(tiny, mode) as active:
        # The second run finds what the first has left.
        for _ in range(2):
            calls = {call.node: call for call in active.run(graph, "x").calls}
            assert calls["silent"].message.text == calls["mute"].message.text == ""
            assert calls["last"].report.output_tokens > 0


NO_TEXT = r"`task` is .*, which is no text: .* session\.chat\(graph\)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((text, "`task` is empty") for text in ("", " \t\n\u3000")),
        *((given, NO_TEXT) for given in ([{"role": "user", "content": "Hi"}], 42, {"a": 1}, b"Hi")),
    ],
)
def test_an_input_that_is_no_text_is_refused(tiny, given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        answered(tiny, "exact", GRAPH, given)  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", ["word ", "😀", "<|im_start|>", "x"])
def test_ten_megabytes_do_not_fit_and_say_so_at_once(smol, piece: str) -> None:
    text = piece * (10_000_000 // len(piece.encode()))
    began = time.process_time()
    with pytest.raises(ContextOverflow, match="shorten its inputs"):
        answered(smol, "exact", GRAPH, text)
    assert time.process_time() - began < 5


def test_a_long_text_is_cut_only_where_it_fits_no_context() -> None:
    codec = smol_codec()
    text = "Every text that may fit is encoded whole. " * 400
    whole, most = codec.encode(text), codec.most
    try:
        codec.most = len(whole)
        assert codec.encode(text) == whole
        codec.most = 500
        assert 500 < len(codec.encode(text)) < len(whole)
    finally:
        codec.most = most


def test_halves_of_characters_become_marks() -> None:
    assert well_formed("a\ud83d\ude00b\udcff\ud800") == "a😀b\ufffd\ufffd"
    codec = smol_codec()
    assert codec.decode(codec.encode("x\udcff")) == "x\ufffd"
    assert outgoing(codec, codec.encode("hi"), lambda text: text + "\ud800").text == "hi\ufffd"
    graph = chain(Agent("a", prompt="\ud800 {task}"))
    assert "\ufffd" in codec.decode(graph.template("a", codec).literals[0])


def test_bytes_that_are_no_text_on_the_command_line(cli: Callable) -> None:
    words = [
        "--model",
        "random:llama-tiny",
        "--state",
        "none",
        "--max-tokens",
        "4",
        "--out",
        "here",
    ]
    # As Python hands over the byte 0xff.
    assert cli("run", "bad \udcff byte", *words, "--out", "here").code == 0
    assert read_trace(Path("here/trace.jsonl")).started.inputs == {"task": "bad \ufffd byte"}


def test_words_keep_their_joiners_and_lose_what_steers() -> None:
    kept = "naïve 3\u202f000\u00a0km 👩‍👩‍👧 می‌خواهم \u200fשלום"
    assert plain(kept) == kept
    assert plain("\x1b[1m\x07\x9b\r\x7f\u202e\u2066\ud800") == "�[1m" + "�" * 7
    assert plain("a\tb\r\nc") == "a    b\nc"
    assert shorten("\x1ba\n b" + "c" * 50, 10) == "�a bccccc…"


def test_halves_of_characters_in_inputs_and_from_tools(tiny: LocalEngine, tmp_path: Path) -> None:
    graph = AgentGraph([Tool("web", lambda texts: "found \udc00"), agent("a")], [("web", "a")])
    answered(tiny, "exact", graph, "a\ud800", out=tmp_path)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.started.inputs == {"task": "a\ufffd"}
    assert trace.tools[0].texts == {"web": "found \ufffd"}


def test_a_seed_that_no_trace_could_hold_is_refused(tiny: LocalEngine) -> None:
    with pytest.raises(UsageError, match="64 bits"):
        answered(tiny, "exact", seed=2**64)
