"""Timeline, slowest calls, warnings and advice of traces written by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvcomm.trace import Recorder, TraceRun, read_trace
from kvcomm.trace.advice import advice, warnings
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    MessageSent,
    NodeInfo,
    RunFinished,
    RunStarted,
    SegmentStep,
    ToolFinished,
    Totals,
)
from kvcomm.trace.timeline import Timeline, slowest

NODES = [
    NodeInfo(name="search", agent="search", tool=True),
    NodeInfo(name="a", agent="a", senders=["search"]),
    NodeInfo(name="b", agent="b", senders=["search"]),
    NodeInfo(name="judge", agent="judge", senders=["a", "b"]),
]


class Written:
    """A trace in the making: times are `opened ready first finished`."""

    def __init__(self, folder: Path, mode: str = "exact") -> None:
        folder.mkdir(parents=True)
        self.recorder = Recorder(folder)
        self.path = folder / "trace.jsonl"
        self.recorder.write(
            RunStarted,
            kvcomm="0",
            started="2025-01-02T03:04:05",
            model="m",
            device="cpu",
            dtype="float32",
            mode=mode,
            seed=0,
            graph="g",
            nodes=NODES,
            answer_node="judge",
            inputs={"task": "x"},
        )

    def call(self, node: str, times: str, **fields: Any) -> None:
        opened, ready, first, finished = map(float, times.split())
        self.recorder.write(
            CallFinished,
            **{
                "node": node,
                "agent": node,
                "round": 1,
                "attempt": 1,
                "mode": "exact",
                "gate": "exact",
                "dense": False,
                "exact": True,
                "prompt_tokens": 100,
                "output_tokens": 20,
                "opened_at": opened,
                "ready_at": ready,
                "first_token_at": first,
                "finished_at": finished,
                "ttft_s": first - ready,
                "decode_s": finished - first,
                "stop": "stop",
                **fields,
            },
        )

    def step(self, node: str, name: str, computed: int, reason: str = "in no prefix") -> None:
        self.recorder.write(
            SegmentStep,
            node=node,
            attempt=1,
            index=0,
            segment="placeholder",
            name=name,
            tokens=computed,
            way="compute",
            computed=computed,
            prefix=0,
            realigned=0,
            ahead=0,
            reason=reason,
        )

    def message(self, node: str, tokens: int, covered: int, reason: str = "") -> None:
        self.recorder.write(
            MessageSent,
            node=node,
            attempt=1,
            text="t",
            tokens=tokens,
            handle="h",
            covered=covered,
            exact=True,
            reason=reason,
        )

    def end(self, wall_s: float) -> TraceRun:
        totals = Totals(
            prompt_tokens=1, computed_tokens=1, reused_tokens=0, extra={}, wall_s=wall_s
        )
        self.recorder.write(RunFinished, status="ok", answer="x", totals=totals)
        self.recorder.close()
        return read_trace(self.path)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "run")


def drawn(run: TraceRun, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(Timeline(run))
    return [line.rstrip() for line in file.getvalue().split("\n") if line.strip()]


def test_bars_are_to_scale(written: Written) -> None:
    written.call("a", "0 0 1 10")
    written.call("judge", "0 8 8.5 10", ahead_s=4.0)
    lines = drawn(written.end(10.0), 100 + 5 + 12)
    bars = {line.split()[0]: line.split(" ", 3)[-1] for line in lines[:2]}
    assert bars["a"].count("▓") == 10
    assert bars["a"].count("█") == 90
    judge = next(line for line in lines if line.lstrip().startswith("judge"))
    assert [judge.count(mark) for mark in "·░▓█"] == [40, 40, 5, 15]
    assert judge.endswith("0.50")
    assert "10.0 s" in lines[-2]


def test_what_takes_no_time_is_not_drawn_and_a_little_shows(written: Written) -> None:
    written.call("a", "0 0 0.001 10")
    lines = drawn(written.end(10.0), 80)
    assert lines[0].count("▓") == 1
    assert "·" not in lines[0]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_lines_fit_the_terminal(written: Written, width: int) -> None:
    written.recorder.write(
        ToolFinished,
        node="search",
        attempt=1,
        texts={"passage1": "x"},
        tokens={"passage1": 1},
        cut=["passage1"],
        ready_at=0.0,
        finished_at=1.0,
    )
    written.call("a" * 40, "1 1 2 5")
    lines = drawn(written.end(5.0), width)
    assert max(map(len, lines)) <= width
    assert lines[0].split()[0] == "search"
    assert "a tool" in " ".join(lines)


def test_the_slowest_calls_and_what_they_did(written: Written) -> None:
    written.call("a", "0 0 1 2", phases={"forward": 0.8, "fill": 0.1, "observe": 0.01})
    written.call("b", "0 0 1 9")
    first, second = slowest(written.end(10.0))
    assert first.startswith("b: 9.00 s, of which 1.00 s to the first token (no phases recorded)")
    assert "forward 0.80 s, fill 0.10 s" in second


def test_a_good_run_has_no_warnings_and_no_advice(written: Written) -> None:
    written.call("a", "0 0 1 5")
    written.call("b", "0 0 1 5")
    written.call("judge", "0 5 5.1 7")
    written.message("a", 20, 19)
    run = written.end(10.0)
    assert warnings(run) == []
    assert advice(run) == []


def test_what_is_warned_of(written: Written) -> None:
    audit = {"attempt": 1, "level": "light", "used": True, "target": 0.02}
    written.recorder.write(Audited, node="a", **audit, divergence=0.05)
    written.recorder.write(Audited, node="b", **audit, error="out of room")
    written.recorder.write(Audited, node="b", **audit, divergence=0.01)
    written.step("a", "task", 9, "computed, its KV has left the store; planned: offset")
    written.message("b", 9, 0, "text only: no KV, or no room in the store")
    written.call("a", "0 0 1 5", redone_tokens=12)
    lines = " | ".join(warnings(written.end(10.0)))
    assert "a: divergence 0.0500 is above the target of 0.02" in lines
    assert "b: an audit failed: out of room" in lines
    assert "0.0100" not in lines
    assert "a: {task} computed, its KV has left the store" in lines
    assert "b: its message went without KV" in lines
    assert "a: 12 tokens computed for nothing" in lines


def test_who_waits_for_one_input_alone(written: Written) -> None:
    written.call("a", "0 0 1 2")
    written.call("b", "0 0 1 8")
    (line,) = [line for line in advice(written.end(10.0)) if "waits" in line]
    assert line.startswith("judge waits for b, which ends 6.00 s after all its other inputs")


def test_a_message_that_was_rewritten(written: Written) -> None:
    written.message("a", 20, 4)
    written.call("a", "0 0 1 2")
    assert "a: 16 of 20 tokens of its message have no KV" in " ".join(advice(written.end(10.0)))


def test_an_input_that_several_computed(written: Written) -> None:
    for node in "ab":
        written.step(node, "task", 50)
        written.call(node, "0 0 1 2")
    assert "{task} was computed 2 times, 100 % of all that was" in " ".join(
        advice(written.end(10.0))
    )


def test_decoding_that_takes_nearly_all(written: Written) -> None:
    written.call("a", "0 0 0.1 9.5")
    written.call("b", "0 0 0.1 5")  # beside the other: counted once
    assert "decoding takes 94% of the run" in " ".join(advice(written.end(10.0)))


def test_learning_modes_that_know_too_little(tmp_path: Path) -> None:
    written = Written(tmp_path / "auto", "auto")
    written.call("a", "0 0 1 2", gate="auto: exact, too little learned: 1 samples")
    assert "auto has seen too little for 1 call" in " ".join(advice(written.end(10.0)))
    written = Written(tmp_path / "kvcomm", "kvcomm")
    written.call("a", "0 0 1 2", gate="dense: {task}: no anchors yet, needs 2", dense=True)
    assert "1 of 1 call fell back to dense, mostly as no anchors yet" in " ".join(
        advice(written.end(10.0))
    )
