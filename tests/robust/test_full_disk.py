"""A disk that fills up: answers are given, what was written is whole, and the user is told."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import StateError
from kvcomm.trace import read_trace
from kvcomm.trace.record import LineFile
from tests.runtime.support import GRAPH, TASK, session
from tests.support import python

# No file may grow beyond so many bytes: the write fails as on a full disk.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"
MAIN = "import sys; from kvcomm.cli import main; main(sys.argv[1:])\n"


def limited(limit: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return python(LIMIT.format(limit) + MAIN, *argv)


LINES = """
import sys; from pathlib import Path
from kvcomm.trace.record import LineFile
file = LineFile(Path(sys.argv[1]))
try:
    for _ in range(20): file.append("x" * 29)
except OSError: print("full")
"""


def test_a_line_is_written_whole_or_not_at_all_and_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    done = python(LIMIT.format(100) + LINES, str(path))
    assert done.stdout == "full\n", done.stderr
    assert path.read_text() == ("x" * 29 + "\n") * 3
    path.write_text("old\n")
    file = LineFile(path)
    file.append("é \ud800")
    file.close()
    assert path.read_bytes() == "old\né ?\n".encode()


def test_a_run_answers_and_its_trace_ends_with_a_whole_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["run", "x", "--model", "random:llama-tiny", "--max-tokens", "8", "--reuse", "kvcomm"]
    done = limited(3000, *argv, "--state", str(tmp_path / "state"), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answer"]
    (trace,) = found["warnings"]
    (state,) = [line for line in done.stderr.splitlines() if "state" in line]
    assert trace == f"the trace in {out} is cut short: File too large"
    assert state.startswith(f"cannot write the state to {tmp_path / 'state'}")
    assert "warning: the trace in" in done.stderr
    assert (out / "trace.jsonl").read_bytes().endswith(b"\n")
    assert read_trace(out / "trace.jsonl").skipped == 0
    assert not list((tmp_path / "state").glob("*.safetensors"))


def test_an_evaluation_keeps_its_samples_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["eval", "math-mini", "--graph", "chain", "--agents", "2", "--max-tokens", "4"]
    argv += ["--model", "random:llama-tiny", "--reuse", "exact", "--limit", "12", "--out", str(out)]
    done = limited(6000, *argv)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: cannot write to {out}: File too large; ")
    assert "run the same command again" in last
    assert "Traceback" not in done.stderr
    kept = (out / "samples.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    again = python(MAIN, *argv, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["samples"] == 12
    assert (out / "samples.jsonl").read_bytes().startswith(kept)


def test_state_that_cannot_be_written_is_kept_and_saved_later(
    tiny: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateError("cannot write the state")

    with session(tiny, "kvcomm", state=tmp_path) as active:
        with monkeypatch.context() as patched:
            patched.setattr("kvcomm.engine.local.engine.save_state", full)
            active.run(GRAPH, TASK)
            with pytest.raises(StateError, match="cannot write the state"):
                asyncio.run(active.save())
            assert active.run(GRAPH, TASK).warnings == ("cannot write the state",)
        assert not list(tmp_path.glob("*.safetensors"))
        asyncio.run(active.save())
        assert active.run(GRAPH, TASK).warnings == ()
    assert list(tmp_path.glob("*.safetensors"))
