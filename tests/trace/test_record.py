"""A trace as it is written: a run that begins again leaves one run behind."""

import threading
from pathlib import Path

from kvcomm.trace.advice import warnings
from kvcomm.trace.events import Event, NodeStarted, RunFinished, RunStarted, Totals
from kvcomm.trace.read import follow, read_trace
from kvcomm.trace.record import TRACE_FILE, Recorder
from tests.trace import traces

TOTALS = Totals(prompt_tokens=0, computed_tokens=0, reused_tokens=0, extra={}, wall_s=0)
WHY = "replica 0 was lost: the run began again on another one"


def begin(recorder: Recorder) -> None:
    recorder.write(RunStarted, **traces.STARTED | {"nodes": []})
    recorder.text("first", lambda: "first")
    for node in "ab":
        recorder.write(NodeStarted, node=node, attempt=1, prompt_capacity=0)


def end(recorder: Recorder) -> None:
    recorder.write(NodeStarted, node="a", attempt=1, prompt_capacity=0)
    assert recorder.text("second", lambda: "second") == 0
    recorder.write(RunFinished, status="ok", answer="42", totals=TOTALS)
    recorder.release()


def test_of_a_run_that_begins_again_one_is_left(tmp_path: Path) -> None:
    heard: list[Event] = []
    recorder = Recorder(tmp_path, [heard.append])
    begin(recorder)
    recorder.begin_again(WHY)
    end(recorder)
    run = read_trace(tmp_path / TRACE_FILE)
    assert [event.kind for event in run.events] == ["run", "restart", "node", "text", "end"]
    assert [view.node for view in run.calls] == ["a"]
    assert run.texts == {0: "second"}
    assert warnings(run) == [WHY]
    assert [event.kind for event in heard].count("node") == 3


def test_who_follows_a_run_that_begins_again_sees_its_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    begin(recorder)
    found: list[Event] = []
    read, again = threading.Event(), threading.Event()

    def watch() -> None:
        for event in follow(tmp_path / TRACE_FILE, wait_s=0.01):
            found.append(event)
            if event.kind == "node" and event.node == "b":
                read.set()
            if event.kind == "restart":
                again.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert read.wait(60)
    recorder.begin_again(WHY)
    assert again.wait(60)
    end(recorder)
    thread.join(60)
    assert found[-1].kind == "end"
