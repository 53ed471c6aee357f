"""Ready-made topologies. Each takes agents and returns a validated `AgentGraph`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from kvcomm.agents import Agent
from kvcomm.errors import GraphError
from kvcomm.graphs.graph import AgentGraph, name_of


def chain(*agents: Agent) -> AgentGraph:
    """Each agent hears the one before it."""
    names = [name_of(agent) for agent in agents]
    return AgentGraph(agents, list(pairwise(names)), name="chain")


def fully_connected(*agents: Agent) -> AgentGraph:
    """Each agent hears all agents before it: the paper's topology."""
    names = [name_of(agent) for agent in agents]
    edges = [(names[i], names[j]) for j in range(len(names)) for i in range(j)]
    return AgentGraph(agents, edges, name="full")


def debate(*agents: Agent, rounds: int = 2, judge: Agent | None = None) -> AgentGraph:
    """Every agent answers, then `rounds - 1` times hears all answers and answers again.

    Rounds are unrolled: agent `a` in round 2 is the node `a@2`. A `judge` hears the last round and
    its message is the answer; without one the last agent of the last round answers.
    """
    if rounds < 1:
        raise GraphError(f"a debate of {rounds} rounds says nothing: use at least 1")
    if not agents:
        raise GraphError("a debate needs at least one agent who answers")
    nodes: dict[str, Agent] = {}
    numbers: dict[str, int] = {}
    edges: list[tuple[str, str]] = []
    _check_names(agents if judge is None else (*agents, judge))
    for number in range(1, rounds + 1):
        for agent in agents:
            name = f"{agent.name}@{number}"
            nodes[name], numbers[name] = agent, number
            if number > 1:
                edges += [(f"{other.name}@{number - 1}", name) for other in agents]
    answer = f"{agents[-1].name}@{rounds}"
    if judge is not None:
        nodes[judge.name], numbers[judge.name] = judge, rounds
        edges += [(f"{agent.name}@{rounds}", judge.name) for agent in agents]
        answer = judge.name
    return AgentGraph(nodes, edges, answer=answer, name="debate", rounds=numbers)


def star(hub: Agent, *leaves: Agent) -> AgentGraph:
    """The hub hears every leaf and answers."""
    name = name_of(hub)
    edges = [(name_of(leaf), name) for leaf in leaves]
    return AgentGraph([*leaves, hub], edges, answer=name, name="star")


def layered(*layers: Sequence[Agent]) -> AgentGraph:
    """Each agent hears every agent of the layer before; the last of the last layer answers."""
    if not all(layers):
        raise GraphError("a layer without agents hands nothing on: leave it out")
    edges = [
        (name_of(source), name_of(target))
        for above, below in pairwise(layers)
        for source in above
        for target in below
    ]
    agents = [agent for layer in layers for agent in layer]
    answer = name_of(layers[-1][-1]) if layers else None
    return AgentGraph(agents, edges, answer=answer, name="layered")


def tree(*agents: Agent, branching: int = 2) -> AgentGraph:
    """A reduction: the first agent is the root and answers, each hears its `branching` children."""
    if branching < 1:
        raise GraphError(f"a tree with {branching} branches does not branch: use at least 1")
    names = [name_of(agent) for agent in agents]
    edges = [(names[i], names[(i - 1) // branching]) for i in range(1, len(names))]
    answer = names[0] if names else None
    return AgentGraph(agents, edges, answer=answer, name="tree")


def random_dag(*agents: Agent, density: float = 0.5, seed: int = 0) -> AgentGraph:
    """Each earlier agent speaks to each later one with probability `density`; the last one answers.

    Agents that nobody else hears speak to the last one, so no work is lost.
    """
    draw = random.Random(seed)
    names = [name_of(agent) for agent in agents]
    edges = [
        (names[i], names[j]) for j in range(len(names)) for i in range(j) if draw.random() < density
    ]
    heard = {source for source, _ in edges}
    edges += [(name, names[-1]) for name in names[:-1] if name not in heard]
    return AgentGraph(agents, edges, answer=names[-1] if names else None, name="random")


def _check_names(agents: Sequence[Agent]) -> None:
    seen: set[str] = set()
    for agent in agents:
        name = name_of(agent)
        if name in seen:
            raise GraphError(f"two agents are called `{name}`: give one another name")
        seen.add(name)
