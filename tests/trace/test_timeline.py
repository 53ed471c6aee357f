"""Timeline, slowest calls, warnings and advice of traces written by hand."""

from pathlib import Path

import pytest

from kvcomm.trace.advice import advice, warnings
from kvcomm.trace.events import Audited, NodeInfo, ToolFinished
from kvcomm.trace.timeline import Timeline, slowest
from tests.trace.traces import Written, call, message, shown, step

NODES = [
    NodeInfo(name="search", agent="search", tool=True),
    NodeInfo(name="a", agent="a", senders=["search"]),
    NodeInfo(name="b", agent="b", senders=["search"]),
    NodeInfo(name="judge", agent="judge", senders=["a", "b"]),
]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path, mode="exact", nodes=NODES, answer_node="judge")


def test_bars_are_to_scale(written: Written) -> None:
    written.add(call("a", "0 0 1 10"), call("judge", "0 8 8.5 10", ahead_s=4.0))
    written.add(call("b", "0 0 0.001 10"))
    lines = shown(Timeline(written.end(wall_s=10.0)), 100 + 5 + 12).rstrip().split("\n")
    marks = {line.split()[0]: [line.count(mark) for mark in "·░▓█"] for line in lines[:3]}
    assert marks["a"] == [0, 0, 10, 90]
    assert marks["judge"] == [40, 40, 5, 15]
    assert marks["b"] == [0, 0, 1, 99]  # what takes no time is not drawn, and a little shows
    assert next(line for line in lines if "judge" in line).endswith("0.50")
    assert "10.0 s" in lines[-2]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_lines_fit_the_terminal(written: Written, width: int) -> None:
    texts = {"texts": {"passage1": "x"}, "tokens": {"passage1": 1}, "cut": ["passage1"]}
    written.write(ToolFinished, node="search", attempt=1, ready_at=0.0, finished_at=1.0, **texts)
    written.add(call("a" * 40, "1 1 2 5"))
    run = written.end(wall_s=5.0)
    text = shown(Timeline(run), width)
    assert text.split()[0] == "search"
    assert "a tool" in text
    assert warnings(run) == ["search: passage1 was cut after 1 token"]


def test_the_slowest_calls_and_what_they_did(written: Written) -> None:
    phases = {"forward": 0.8, "fill": 0.1, "observe": 0.01}
    written.add(call("a", "0 0 1 2", phases=phases), call("b", "0 0 1 9"))
    first, second = slowest(written.end())
    assert first.startswith("b: 9.00 s, of which 1.00 s to the first token (no phases recorded)")
    assert "forward 0.80 s, fill 0.10 s" in second


def test_a_good_run_has_no_warnings_and_no_advice(written: Written) -> None:
    written.add(call("a", "0 0 1 5"), call("b", "0 0 1 5"), call("judge", "0 5 5.1 7"))
    written.add(message("a"))
    run = written.end(wall_s=10.0)
    assert (warnings(run), advice(run)) == ([], [])


def test_what_is_warned_of(written: Written) -> None:
    audit = {"attempt": 1, "level": "light", "used": True, "target": 0.02}
    written.write(Audited, node="a", **audit, divergence=0.05)
    written.write(Audited, node="b", **audit, error="out of room")
    written.write(Audited, node="b", **audit, divergence=0.01)
    gone = "computed, its KV has left the store; planned: offset"
    written.add(step("a", "task", "9 0 0 0", gone), call("a", "0 0 1 5", redone_tokens=12))
    written.add(message("b", covered=0, reason="text only: no KV, or no room in the store"))
    lines = " | ".join(warnings(written.end()))
    assert "a: divergence 0.0500 is above the target of 0.02" in lines
    assert "b: an audit failed: out of room" in lines
    assert "0.0100" not in lines
    assert "a: {task} computed, its KV has left the store" in lines
    assert "b: its message went without KV" in lines
    assert "a: 12 tokens computed for nothing" in lines


NONE = "dense: {task}: no anchors yet, needs 2"
A = call("a", "0 0 1 2")
TWICE = [e for n in "ab" for e in (step(n, "task", "50 0 0 0"), call(n, "0 0 1 2"))]
LITTLE = "auto: exact, too little learned: 1 samples"


@pytest.mark.parametrize(
    ("mode", "events", "says"),
    [
        ("exact", [A, call("b", "0 0 1 8")], "judge waits for b, which ends 6.00 s after all its"),
        ("exact", [message("a", covered=4), A], "a: 20 of 24 tokens of its message have no KV"),
        ("exact", TWICE, "{task} was computed 2 times, 100 % of all that was"),
        # b beside a is counted once.
        ("exact", [call("a", "0 0 0.1 9.5"), call("b", "0 0 0.1 5")], "decoding takes 94% of the"),
        ("auto", [call("a", "0 0 1 2", gate=LITTLE)], "auto has seen too little for 1"),
        ("kvcomm", [call("a", "0 0 1 2", gate=NONE, dense=True)], "mostly as no anchors yet"),
    ],
)
def test_advice(tmp_path: Path, mode: str, events: list[object], says: str) -> None:
    written = Written(tmp_path, mode=mode, nodes=NODES, answer_node="judge")
    written.add(*events)
    assert says in " | ".join(advice(written.end(wall_s=10.0)))
