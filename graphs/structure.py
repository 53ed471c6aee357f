"""The shape of a graph: its edges checked, its order, its neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

from kvcomm.agents import Agent, Tool
from kvcomm.errors import GraphError
from kvcomm.trace.text import MOST, listed

Agents = Mapping[str, Agent | Tool]
Edges = Sequence[tuple[str, str]]


def checked_edges(agents: Agents, edges: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Each edge once. Raises `GraphError` for an end that is no node."""
    checked = tuple(dict.fromkeys((source, target) for source, target in edges))
    for edge in checked:
        for end in edge:
            if end not in agents:
                raise GraphError(
                    f"edge `{edge[0]}` → `{edge[1]}` names `{end}`, which is no node: "
                    f"{listed(agents)}"
                )
    return checked


def digraph(agents: Agents, edges: Edges) -> nx.DiGraph[str]:
    """Nodes and edges, as networkx has them."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(agents)
    graph.add_edges_from(edges)
    return graph


def topological(agents: Agents, edges: Edges) -> tuple[str, ...]:
    """Node names in topological order, else as given. Raises `GraphError` for a cycle."""
    graph = digraph(agents, edges)
    try:
        place = {node: index for index, node in enumerate(agents)}
        return tuple(nx.lexicographical_topological_sort(graph, key=place.__getitem__))
    except nx.NetworkXUnfeasible:
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        shown = [f"`{node}`" for node in cycle[:MOST]]
        if len(cycle) > MOST:
            shown.append(f"{len(cycle) - MOST:,} more")
        raise GraphError(
            f"the graph has a cycle: {' → '.join(shown)} → `{cycle[0]}`; unroll rounds "
            "into nodes of their own (as `debate` does)"
        ) from None


def neighbours(agents: Agents, edges: Edges) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Predecessors of every node in the order of `agents`, and successors."""
    place = {node: index for index, node in enumerate(agents)}
    into: dict[str, list[str]] = {node: [] for node in agents}
    out: dict[str, list[str]] = {node: [] for node in agents}
    for source, target in edges:
        into[target].append(source)
        out[source].append(target)
    for sources in into.values():
        sources.sort(key=place.__getitem__)
    return into, out


def checked_answer(
    answer: str | None,
    order: Sequence[str],
    successors: Mapping[str, Sequence[str]],
    agents: Agents,
) -> str:
    """The node that answers. Raises `GraphError` where it is not clear, or cannot be."""
    if answer is None:
        last = [node for node in order if not successors[node]]
        if len(last) > 1:
            raise GraphError(f"the graph ends in {listed(last)}: say which one is the `answer`")
        answer = last[0]
    if answer not in agents:
        raise GraphError(f"the answer node `{answer}` is not in the graph")
    if isinstance(agents[answer], Tool):
        raise GraphError(f"the answer node `{answer}` is a tool: let an agent have the last word")
    return answer
