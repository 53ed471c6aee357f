"""Graphs and sessions for the runtime tests."""

from __future__ import annotations

import asyncio
from typing import Any

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.base import Engine
from kvcomm.graphs import AgentGraph, chain
from kvcomm.reuse.auto import LEVELS
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.result import Result
from kvcomm.runtime.session import Session
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


def session(engine: Engine, reuse: str | Policy, **options: Any) -> Session:
    """A session that writes nothing and remembers nothing, in a namespace of its own."""
    return Session(engine, **{"reuse": reuse, "state": None, "runs": None, **options})


GRAPH = chain(agent("a", 40), agent("b", 30), agent("c"))
TASKS = [
    f"How many legs do {n} spiders and {n + 2} cats have together, and why?" for n in range(40)
]


def auto(engine: Engine, *, prior: float = 0.0, **options: Any) -> Session:
    """A session of `auto` whose priors are given, not measured: tiny models have no quality."""
    made = session(engine, "auto", **options)
    assert made._auto is not None
    made._auto.priors = {level.name: prior for level in LEVELS}
    return made


def runs(active: Session, count: int, graph: AgentGraph = GRAPH) -> list[Result]:
    """The first `count` tasks, one after another."""
    return [active.run(graph, task) for task in TASKS[:count]]


async def forever(texts: object) -> str:
    """A tool that never returns."""
    await asyncio.Event().wait()
    return ""


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
