"""Logging and listeners: what an operator sees of a run."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

import kvcomm
from kvcomm.agents import Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import chain
from kvcomm.trace import read_trace
from kvcomm.trace.events import Event
from tests.runtime.support import TASK, Events, agent, answered, flaky, session

GRAPH = chain(agent("a"), agent("b"))


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "kvcomm.run" and r.levelno == level]


def test_a_call_is_one_line(tiny: LocalEngine, caplog, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "kvcomm")
    result = answered(tiny, "exact", GRAPH, runs=tmp_path)
    assert result.trace.path is not None
    *calls, end = lines(caplog, logging.INFO)
    for call, line in zip(result.calls, calls, strict=True):
        r = call.report
        assert line == (
            f"run={result.trace.path.name} node={r.node} attempt=1 prompt={r.prompt_tokens} "
            f"computed={call.total('computed')} prefix={call.total('prefix')} "
            f"realigned={call.total('realigned')} ttft_s={r.ttft_s:.3f} "
            f"output={r.output_tokens} stop={r.stop}"
        )
    assert end.startswith(f"run={result.trace.path.name} ok calls=2 wall_s=")
    assert not lines(caplog, logging.WARNING)
    # Without a folder runs have short ids.
    caplog.clear()
    for _ in range(2):
        answered(tiny, "exact", GRAPH)
    names = {line.split()[0] for line in lines(caplog, logging.INFO)}
    assert len(names) == 2
    assert all(re.fullmatch(r"run=[0-9a-f]{8}", name) for name in names)
    # The library says nothing by itself.
    handlers = logging.getLogger(kvcomm.__name__).handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_a_retry_is_logged_and_is_a_warning(tiny: LocalEngine, caplog) -> None:
    answers = iter([OSError("no\nconnection \x1b[31m"), "x"])

    def web(texts: object) -> str:
        if isinstance(answer := next(answers), OSError):
            raise answer
        return answer

    again: dict[str, Any] = {"retries": 1, "backoff_s": 0.001}
    result = answered(
        tiny, "exact", chain(Tool("web", web, **again), agent("a", post=flaky(1), **again))
    )
    assert result.warnings == (
        "`web` failed and was tried again: OSError: no\nconnection \x1b[31m",
        "`a` failed and was tried again: RuntimeError: no luck",
    )
    first, second = lines(caplog, logging.WARNING)
    assert first.endswith(
        "node=web attempt=1 failed, tried again in 0.001 s: OSError: no connection �[31m"
    )
    assert "node=a attempt=1 failed, tried again" in second


@pytest.mark.parametrize("kind", ["run", "step", "message", "end"])
def test_a_listener_that_raises_is_named_and_harms_no_run(
    tiny: LocalEngine, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str
) -> None:
    heard: list[str] = []
    sound = Events()

    def broken(event: Event) -> None:
        heard.append(event.kind)
        if event.kind == kind:
            raise ValueError("my listener")

    with session(tiny, "exact", listeners=[broken, sound]) as active:
        result = active.run(GRAPH, TASK, out=tmp_path)
        before = [*heard]
        assert result.answer == active.run(GRAPH, TASK).answer
    (warning,) = result.warnings
    assert warning.endswith("broken raised ValueError: my listener; it heard nothing more")
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.status == "ok"
    # The other listener heard everything, in both runs; this one nothing behind its failure.
    assert len(sound.of("end")) == 2
    written = [event.kind for event in trace.events]
    assert before == written[: written.index(kind) + 1]
    warned = lines(caplog, logging.WARNING)
    assert len(warned) == 2
    assert all(line.endswith("broken raised and hears nothing more") for line in warned)
