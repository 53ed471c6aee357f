"""Progress on stderr, with and without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from kvcomm.cli.demo import Steps
from kvcomm.cli.progress import RunProgress
from kvcomm.trace import Recorder
from kvcomm.trace.events import CallFinished, Failed, NodeInfo, NodeStarted, Retried, RunStarted

STARTED: dict[str, Any] = {
    "kvcomm": "0",
    "started": "",
    "model": "m",
    "device": "cpu",
    "dtype": "float32",
    "mode": "exact",
    "seed": 0,
    "graph": "chain",
    "nodes": [NodeInfo(name="solver", agent="solver"), NodeInfo(name="editor", agent="editor")],
    "answer_node": "editor",
    "inputs": {"task": "x"},
}
CALL: dict[str, Any] = {
    "node": "solver",
    "agent": "solver",
    "round": 1,
    "attempt": 2,
    "mode": "exact",
    "gate": "",
    "dense": False,
    "exact": True,
    "prompt_tokens": 9,
    "output_tokens": 1,
    "opened_at": 0,
    "ready_at": 0,
    "first_token_at": 0.25,
    "finished_at": 1,
    "ttft_s": 0.25,
    "decode_s": 0.5,
    "stop": "stop",
}


def play(progress: RunProgress) -> None:
    recorder = Recorder(None, (progress,))
    recorder.write(RunStarted, **STARTED)
    recorder.write(NodeStarted, node="solver", attempt=1, prompt_capacity=9)
    recorder.write(Retried, node="solver", attempt=1, error="too\nslow", wait_s=1)
    recorder.write(CallFinished, **CALL)
    recorder.write(Failed, node="editor", error="no room")
    recorder.write(Failed, node=None, error="the run failed")


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        play(progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n") == [
        "solver: attempt 1 failed: too slow; tries again in 1.00 s",
        "solver: 1 token in 0.50 s, first after 0.25 s",
        "editor: failed: no room",
        "",
    ]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()

    def console() -> Console:
        return Console(file=file, force_terminal=True, width=80)

    monkeypatch.setattr("kvcomm.cli.progress.err_console", console)
    return file


def test_a_terminal_shows_every_node(
    terminal: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress() as progress:
        play(progress)
    assert "1 token in 0.50 s" in terminal.getvalue()
    assert capsys.readouterr() == ("", "")


def test_steps_count_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with (steps := Steps("chain", 12)):
        steps.begin("rolls, dense")
        steps.end(1.5)
    assert capsys.readouterr().err == "chain  1/12  rolls, dense: 1.50 s\n"


def test_steps_show_a_bar(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps("chain", 2)
    for _ in range(2):
        with steps:
            steps.begin("rolls, dense")
            print("between, on stdout")
            steps.end(1.5)
    assert "chain: rolls, dense" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert capsys.readouterr().out == "between, on stdout\n" * 2
