"""Ctrl-C: exit code 130, one line, and a trace that can be read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from kvcomm.trace import read_trace

COMMAND = "from kvcomm.cli import main; main()"


def test_ctrl_c_in_the_middle_of_a_run(tmp_path: Path) -> None:
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
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.rstrip().split("\n")[-1] == "interrupted"
    assert "Traceback" not in stderr
    finished = read_trace(trace).finished
    assert finished is not None
    assert finished.status == "interrupted"
