"""Progress on stderr, with and without a terminal."""

import io

import pytest
from rich.console import Console

from kvcomm.cli.progress import Counted, RunProgress
from kvcomm.trace import Recorder
from kvcomm.trace.events import CallFinished, Failed, NodeStarted, Retried, RunStarted
from tests.trace import traces


def play(progress: RunProgress) -> None:
    recorder = Recorder(None, (progress,))
    recorder.write(RunStarted, **traces.STARTED)
    recorder.write(NodeStarted, node="solver", attempt=1, prompt_capacity=9)
    recorder.write(Retried, node="solver", attempt=1, error="too\nslow", wait_s=1)
    done = traces.call("solver", "0 0 0.25 0.75", output_tokens=1)
    recorder.write(CallFinished, **done.model_dump(exclude={"t", "kind"}))
    recorder.write(Failed, node="editor", error="no room")
    recorder.write(Failed, node=None, error="the run failed")


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        play(progress)
    with (counted := Counted("chain", 12)):
        counted.show("chain: rolls", 0)
        counted.show("chain: rolls", 1, "chain  1/12  rolls: 1.50 s")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n") == [
        "solver failed: too slow; tries again in 1.00 s",
        "solver done: 1 token in 0.50 s, the first after 0.25 s",
        "editor failed: no room",
        "chain  1/12  rolls: 1.50 s",
        "",
    ]


def test_a_terminal_shows_nodes_and_bars(monkeypatch, capsys) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        "kvcomm.cli.progress.console",
        lambda stderr: Console(file=file, force_terminal=True, width=80),
    )
    with RunProgress() as progress:
        play(progress)
    assert "1 token in 0.50 s" in file.getvalue()
    counted = Counted("chain", 2)
    for done in (1, 2):
        with counted:
            counted.show("chain: rolls", done, "a line")
            print("between, on stdout")
    assert "chain: rolls" in file.getvalue()
    assert "2/2" in file.getvalue()
    assert capsys.readouterr() == ("between, on stdout\n" * 2, "")
