"""Graphs and sessions for the runtime tests."""

from __future__ import annotations

from typing import Any

from kvcomm.agents import Agent, Sampling
from kvcomm.engine.base import Engine
from kvcomm.runtime.session import Session
from kvcomm.trace.events import Event

TASK = "How many legs do three spiders have?"


def agent(name: str, tokens: int = 12, **fields: Any) -> Agent:
    """A small agent with a role text and room for every message."""
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{task}\n\n{history}\n\n{messages}\n\nGo on.",
        sampling=Sampling(max_tokens=tokens),
        **fields,
    )


def session(engine: Engine, reuse: str, **options: Any) -> Session:
    """A session that writes nothing and remembers nothing, in a namespace of its own."""
    return Session(engine, **{"reuse": reuse, "state": None, "runs": None, **options})


class Events:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.all.append(event)

    def of(self, kind: str) -> list[Any]:
        """Events of one kind."""
        return [event for event in self.all if event.kind == kind]
