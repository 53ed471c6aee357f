"""Ctrl-C and signals to end: an exit code, one line, and a trace that can be read."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvcomm.trace import read_trace

COMMAND = "from kvcomm.cli import main; main()"
MODEL = ("--model", "random:llama-tiny")


def signalled(number: signal.Signals, file: Path, begun: str, *argv: str) -> tuple[int, list[str]]:
    """The exit code and stderr's lines of a command that gets a signal once `file` says `begun`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *argv], **pipes, text=True)
    until = time.monotonic() + 60
    while not (file.exists() and begun in file.read_text()):
        assert time.monotonic() < until, "it did not begin"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert "Traceback" not in stderr
    return process.returncode, stderr.rstrip().split("\n")


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_signal_during_a_run(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    out, trace = tmp_path / "out", tmp_path / "out" / "trace.jsonl"
    options = ("--agents", "12", "--max-tokens", "2000", "--state", "none", "--out", str(out))
    ended, lines = signalled(number, trace, '"kind":"node"', "run", "x", *MODEL, *options)
    assert ended == code
    assert lines[-2:] == [f"its trace: kvcomm trace show {out}", word]
    run = read_trace(trace)
    assert run.finished
    assert run.finished.status == "interrupted"
    assert any(view.interrupted for view in run.calls)


def test_a_signal_in_the_middle_of_an_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--max-tokens", "500", "--reuse", "exact", "--out", str(out))
    command = ("eval", "math-mini", *MODEL, *options)
    ended, lines = signalled(signal.SIGINT, out / "samples.jsonl", "", *command)
    assert ended == 130
    assert f"the same command with --out {out} goes on" in lines[-2]
    assert lines[-1] == "interrupted"
