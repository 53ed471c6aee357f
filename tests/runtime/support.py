"""Graphs and sessions for the runtime tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.base import Engine, ShadowEvaluation
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import AgentGraph, chain
from kvcomm.reuse.auto import LEVELS
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.result import Result
from kvcomm.session import Session
from kvcomm.trace.events import Event

TASK = "How many legs do three spiders have?"


def agent(name: str, tokens: int = 12, **fields: Any) -> Agent:
    """A small agent with a role text and room for every message."""
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{task}\n\n{history}\n\n{messages}\n\nGo on.",
        **{"sampling": Sampling(max_tokens=tokens), **fields},
    )


def session(
    engine: Engine, reuse: str | Policy, *, now: datetime | None = None, **options: Any
) -> Session:
    """A session that writes nothing and remembers nothing; its prompts are of the day `now`."""
    made = Session(engine, **{"reuse": reuse, "state": None, "runs": None, **options})
    made.now = now or made.now
    return made


GRAPH = chain(agent("a", 40), agent("b", 30), agent("c"))
TASKS = [
    f"How many legs do {n} spiders and {n + 2} cats have together, and why?" for n in range(40)
]
# Rotating alone would err too much, learned offsets do not.
LEARNED: dict[str, float] = {"prior": 60.0, "target_divergence": 100.0}


def auto(engine: Engine, *, prior: float = 0.0, **options: Any) -> Session:
    """A session of `auto` whose priors are given, not measured: tiny models have no quality."""
    made = session(engine, "auto", **options)
    kinds = ("message", "borrowed")
    made.auto.priors = {f"{kind} {level.name}": prior for kind in kinds for level in LEVELS}
    return made


def answered(
    engine: Engine,
    reuse: str | Policy,
    graph: AgentGraph = GRAPH,
    task: str = TASK,
    *,
    out: Path | None = None,
    **options: Any,
) -> Result:
    """One run in a session of its own."""
    with session(engine, reuse, **options) as active:
        return active.run(graph, task, out=out)


def runs(active: Session, count: int, graph: AgentGraph = GRAPH) -> list[Result]:
    """The first `count` tasks, one after another, each with its audits."""
    found = []
    for task in TASKS[:count]:
        found.append(active.run(graph, task))
        active.drain()
    return found


def steps_of(result: Result, name: str = "task") -> dict[str, Any]:
    """The segment that a placeholder is in, by the node that read it."""
    return {call.node: step for call in result.calls for step in call.steps if step.name == name}


def rest(engine: LocalEngine) -> None:
    """Wait until the engine has done what it was told."""
    while engine.core.call(lambda: engine.core.busy).result():
        pass


def check_at_rest(engine: LocalEngine) -> None:
    """Nothing is left of runs that are over: no sequence, no room, no reader still to come."""
    rest(engine)
    steps = engine.core.steps
    assert [*steps.prompts, *steps.answers, *steps.held] == []
    assert engine.admission.used == 0
    assert not any(entry.refs for entry in engine.segments._entries.values())
    engine.segments.check_integrity()


def flaky(failures: int) -> Callable[[str], str]:
    """A post-processing that raises so many times, then works."""
    left = [failures]

    def post(text: str) -> str:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("no luck")
        return text

    return post


async def forever(texts: object) -> str:
    """A tool that never returns."""
    await asyncio.Event().wait()
    return ""


class Held:
    """Keeps an engine's evaluations from going on until `go` is set."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        evaluate = engine.evaluate

        async def held(*args: Any, **options: Any) -> ShadowEvaluation:
            await asyncio.to_thread(self.go.wait)
            return await evaluate(*args, **options)

        monkeypatch.setattr(engine, "evaluate", held)


# It speaks, and never ends.
ENDLESS = AgentGraph(
    [agent("a"), Tool("web", forever), agent("b")], [("a", "web"), ("a", "b"), ("web", "b")]
)


class Events:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.all.append(event)

    def of(self, kind: str) -> list[Any]:
        """Events of one kind."""
        return [event for event in self.all if event.kind == kind]
