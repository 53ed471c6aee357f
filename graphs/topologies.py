"""Ready-made topologies. Each takes agents and returns a validated `AgentGraph`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

from kvcomm.agents import Agent
from kvcomm.errors import GraphError
from kvcomm.graphs.graph import AgentGraph, name_of


def chain(*agents: Agent) -> AgentGraph:
    """Each agent hears the one before it."""
    return AgentGraph(agents, pairwise(_names(agents)), name="chain")


def fully_connected(*agents: Agent) -> AgentGraph:
    """Each agent hears all agents before it: the paper's topology."""
    return AgentGraph(agents, _pairs(_names(agents)), name="full")


def debate(*agents: Agent, rounds: int = 2, judge: Agent | None = None) -> AgentGraph:
    """Every agent answers, then `rounds - 1` times hears all answers and answers again.

    Rounds are unrolled: agent `a` in round 2 is the node `a@2`. A `judge` hears the last round and
    its message is the answer; without one the last agent of the last round answers.
    """
    if rounds < 1:
        raise GraphError(f"a debate of {rounds} rounds says nothing: use at least 1")
    if not agents:
        raise GraphError("a debate needs at least one agent who answers")
    names = _names(agents if judge is None else (*agents, judge))
    if twice := [name for name in names if names.count(name) > 1]:
        raise GraphError(f"two agents are called `{twice[0]}`: give one another name")
    numbered = [[f"{agent.name}@{n}" for agent in agents] for n in range(1, rounds + 1)]
    nodes = {name: agent for row in numbered for name, agent in zip(row, agents, strict=True)}
    numbers = {name: n for n, row in enumerate(numbered, 1) for name in row}
    if judge is not None:
        numbered.append([judge.name])
        nodes[judge.name], numbers[judge.name] = judge, rounds
    turns = pairwise(numbered)
    edges = [(source, target) for said, row in turns for target in row for source in said]
    return AgentGraph(nodes, edges, answer=numbered[-1][-1], name="debate", rounds=numbers)


def star(hub: Agent, *leaves: Agent) -> AgentGraph:
    """The hub hears every leaf and answers."""
    *names, name = _names((*leaves, hub))
    return AgentGraph([*leaves, hub], [(leaf, name) for leaf in names], answer=name, name="star")


def layered(*layers: Sequence[Agent]) -> AgentGraph:
    """Each agent hears every agent of the layer before; the last of the last layer answers."""
    if not all(layers):
        raise GraphError("a layer without agents hands nothing on: leave it out")
    names = [_names(layer) for layer in layers]
    edges = [edge for above, below in pairwise(names) for edge in product(above, below)]
    agents = [agent for layer in layers for agent in layer]
    return AgentGraph(agents, edges, answer=names[-1][-1] if names else None, name="layered")


def tree(*agents: Agent, branching: int = 2) -> AgentGraph:
    """A reduction: the first agent is the root and answers, each hears its `branching` children."""
    if branching < 1:
        raise GraphError(f"a tree with {branching} branches does not branch: use at least 1")
    names = _names(agents)
    edges = [(names[i], names[(i - 1) // branching]) for i in range(1, len(names))]
    return AgentGraph(agents, edges, answer=names[0] if names else None, name="tree")


def random_dag(*agents: Agent, density: float = 0.5, seed: int = 0) -> AgentGraph:
    """Each earlier agent speaks to each later one with probability `density`; the last one answers.

    Agents that nobody else hears speak to the last one, so no work is lost.
    """
    draw = random.Random(seed)
    names = _names(agents)
    edges = [pair for pair in _pairs(names) if draw.random() < density]
    heard = {source for source, _ in edges}
    edges += [(name, names[-1]) for name in names[:-1] if name not in heard]
    return AgentGraph(agents, edges, answer=names[-1] if names else None, name="random")


def _names(agents: Iterable[Agent]) -> list[str]:
    return [name_of(agent) for agent in agents]


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name with all that follow, by the later one."""
    return [(earlier, later) for at, later in enumerate(names) for earlier in names[:at]]
