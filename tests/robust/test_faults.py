"""Agents and tools that go wrong: what the run does, what is kept, and who is told."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.agents import Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, fully_connected
from kvcomm.trace import read_trace
from tests.runtime.support import TASK, Events, agent, answered, check_at_rest, session
from tests.support import python

MODES = ["dense", "exact", "kvcomm", "auto"]


def raises(_: object) -> str:
    raise RuntimeError("no luck")


def hangs(_: object) -> str:
    time.sleep(30)
    return "too late"


def exits(_: object) -> str:
    raise SystemExit("a post-processing must not end the program")


def returns(value: object) -> Callable[[object], object]:
    return lambda _: value


SKIP = {"on_error": "skip"}
FAULTS = {
    "raises": (raises, "RuntimeError: no luck"),
    "hangs": (hangs, "took longer than its timeout of 1 s"),
    "exits": (exits, "SystemExit: a post-processing must not end the program"),
    "returns nothing": (returns(None), "returned NoneType, not text"),
    "returns bytes": (returns(b"text"), "returned bytes, not text"),
    "returns a number": (returns(42), "returned int, not text"),
}


def team(post: object, **care: object) -> AgentGraph:
    """b goes wrong; c hears a and b."""
    return fully_connected(
        agent("a", 10),
        agent("b", 10, post=post, timeout_s=1.0 if post is hangs else None, **care),
        agent("c", 10),
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_run_with_its_reason(
    tiny: LocalEngine, fault: str, tmp_path: Path
) -> None:
    post, reason = FAULTS[fault]
    with session(tiny, "kvcomm") as active, pytest.raises(NodeFailed) as caught:
        active.run(team(post), TASK, out=tmp_path)
    assert caught.value.node == "b"
    assert reason.split(": ")[-1] in str(caught.value)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert [view.node for view in trace.calls if view.call] == ["a"], "a's work is kept"
    assert [(error.node, error.instead) for error in trace.errors] == [("b", None), (None, None)]
    check_at_rest(tiny)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_readers_are_told_of_a_skipped_branch(tiny: LocalEngine, fault: str, mode: str) -> None:
    post, reason = FAULTS[fault]
    events = Events()
    result = answered(tiny, mode, team(post, on_error="skip"), listeners=(events,))
    assert [call.node for call in result.calls] == ["a", "c"]
    (failed,) = events.of("error")
    assert failed.node == "b"
    assert reason in failed.error
    assert failed.instead == "(b gave no answer.)"
    (warning,) = result.warnings
    assert warning.startswith("`b` failed: ")
    assert warning.endswith('; its readers got "(b gave no answer.)"')
    told = {step.name: step.tokens for step in result.call("c").steps}
    assert told["b"] == len(tiny.codec.encode("(b gave no answer.)"))
    check_at_rest(tiny)


@pytest.mark.parametrize("mode", MODES)
def test_a_fallback_stands_in_for_the_message(tiny: LocalEngine, mode: str) -> None:
    said = "I could not look it up, so take three."
    graph = team(raises, on_error="fallback", fallback=said)
    given = fully_connected(agent("a", 10), Tool("b", lambda texts: said), agent("c", 10))
    with session(tiny, mode) as active:
        assert active.run(graph, TASK).answer == active.run(given, TASK).answer


def test_the_answer_may_fall_back_but_not_be_skipped(tiny: LocalEngine) -> None:
    said = {"on_error": "fallback", "fallback": "No idea."}
    graphs = (fully_connected(agent("a"), agent("b", post=raises, **how)) for how in (said, SKIP))
    assert answered(tiny, "exact", next(graphs), TASK).answer == "No idea."
    with pytest.raises(NodeFailed, match="no luck"):
        answered(tiny, "exact", next(graphs), TASK)


def test_attempts_wait_longer_and_longer(tiny: LocalEngine) -> None:
    events = Events()
    graph = team(raises, on_error="skip", retries=3, backoff_s=0.01)
    answered(tiny, "exact", graph, listeners=(events,))
    assert [retry.wait_s for retry in events.of("retry")] == [0.01, 0.02, 0.04]


HANGING = """
import time
from kvcomm import Session, load_engine
from kvcomm.agents import Agent, Tool
from kvcomm.graphs import chain
web = Tool("web", lambda texts: time.sleep(600), timeout_s=0.2, on_error="skip")
with load_engine("random:llama-tiny") as engine, Session(engine, state=None, runs=None) as session:
    print("answered", len(session.run(chain(web, Agent("a", prompt="{task} {web}")), "x").answer))
"""


def test_what_hangs_does_not_keep_the_program_from_ending() -> None:
    done = python(HANGING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("answered")


def test_other_calls_go_on_while_a_post_processing_hangs(tiny: LocalEngine) -> None:
    """It runs beside the event loop: a's reader c is not held up by b."""
    slow = agent("b", 5, post=hangs, timeout_s=2.0, on_error="skip")
    agents = [agent("a", 5), slow, agent("c", 5), agent("d", 5)]
    events = Events()
    graph = AgentGraph(agents, [("a", "c"), ("b", "d"), ("c", "d")])
    answered(tiny, "exact", graph, listeners=(events,))
    order = [e.node for e in events.all if e.kind in ("call", "error")]
    assert order.index("c") < order.index("b")
