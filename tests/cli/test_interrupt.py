"""Ctrl-C and signals to end: an exit code, one line, and a trace that can be read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvcomm.trace import read_trace

COMMAND = "from kvcomm.cli import main; main()"


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_signal_in_the_middle_of_a_run(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    out = tmp_path / "out"
    options = ["--agents", "12", "--max-tokens", "2000", "--state", "none", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", "x", "--model", "random:llama-tiny", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    trace = out / "trace.jsonl"
    until = time.monotonic() + 60
    while not (trace.exists() and '"kind":"node"' in trace.read_text()):
        assert time.monotonic() < until, "the run did not begin"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == ""
    *_, where, last = stderr.rstrip().split("\n")
    assert (where, last) == (f"its trace: kvcomm trace show {out}", word)
    assert "Traceback" not in stderr
    run = read_trace(trace)
    assert run.finished is not None
    assert run.finished.status == "interrupted"
    assert any(view.interrupted for view in run.calls)


def test_a_signal_in_the_middle_of_an_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--model", "random:llama-tiny", "--reuse", "exact", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "eval", "math-mini", "--max-tokens", "500", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (out / "samples.jsonl").exists():
        assert time.monotonic() < until, "the evaluation did not begin"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    *_, kept, last = stderr.rstrip().split("\n")
    assert f"the same command with --out {out} goes on" in kept
    assert last == "interrupted"
