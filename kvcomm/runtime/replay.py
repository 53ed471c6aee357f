"""The plans of a trace, to run them again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from kvcomm.agents import Agent
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.reuse.policy import Dense, Exact, Policy, ReuseOptions
from kvcomm.reuse.replay import Planned, Replay
from kvcomm.trace.read import read_trace
from kvcomm.trace.run import CallView
from kvcomm.trace.text import listed


def replayed(path: Path, graph: AgentGraph) -> tuple[dict[str, Policy], datetime | None]:
    """A policy for every node of `graph` that repeats what its call in the trace did, and its day.

    Raises `UsageError` for a trace of another graph, or one that does not hold every call.
    """
    run = read_trace(path)
    calls = {view.node: view for view in run.last_calls() if view.call}
    agents = [name for name, node in graph.nodes.items() if isinstance(node.agent, Agent)]
    if missing := [name for name in agents if name not in calls]:
        raise UsageError(
            f"{path} has no finished call of {listed(missing)}: replay it with the graph it was "
            f"made with ({run.started.graph}: {listed(calls)})"
        )
    return {name: _policy(calls[name]) for name in agents}, run.started.now


def _policy(view: CallView) -> Policy:
    assert view.call is not None
    if any(step.way == "realign" for step in view.steps):
        planned = [
            Planned(
                step.name,
                step.tokens,
                step.way,
                tuple(step.positions),
                step.corrected,
                borrowed=bool(step.lender),
            )
            for step in sorted(view.steps, key=lambda step: step.index)
        ]
        return Replay(planned, view.call.offsets)
    if view.call.dense or view.call.mode == "dense":
        return Dense("replayed: dense", ReuseOptions(publishes=view.call.mode != "dense"))
    return Exact("replayed: exact")
