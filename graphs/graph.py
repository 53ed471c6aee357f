"""An immutable, validated DAG of agents over `networkx.DiGraph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from kvcomm.agents import Agent
from kvcomm.agents.agent import Sender
from kvcomm.errors import GraphError
from kvcomm.prompt import Codec, Template


@dataclass(frozen=True)
class Node:
    """One call of an agent: `senders` are the predecessors in graph order."""

    name: str
    agent: Agent
    round: int
    senders: tuple[Sender, ...]


class AgentGraph:
    """Who hears whom, checked when it is built and unchanged afterwards.

    `agents` is a list (each node is named after its agent) or a mapping from node name to agent.
    An edge `(a, b)` hands a's message to b. The order of `agents` is the order of messages in a
    prompt. `answer` names the node whose message is the result; by default the only last node.
    `inputs` are the texts a run brings. `rounds` maps nodes to debate rounds (default 1).

    Raises `GraphError` for no agents, duplicate or unknown names, a cycle, several last nodes
    and no `answer`, and for placeholders and messages that do not match.
    """

    def __init__(
        self,
        agents: Iterable[Agent] | Mapping[str, Agent],
        edges: Iterable[tuple[str, str]] = (),
        *,
        answer: str | None = None,
        name: str = "graph",
        inputs: Iterable[str] = ("task",),
        rounds: Mapping[str, int] | None = None,
    ) -> None:
        named = (
            list(agents.items()) if isinstance(agents, Mapping) else [(a.name, a) for a in agents]
        )
        self.name = name
        self.inputs = tuple(inputs)
        rounds = rounds or {}
        twice = [key for key, count in Counter(key for key, _ in named).items() if count > 1]
        if twice:
            raise GraphError(f"two nodes are called `{twice[0]}`: give one of them another name")
        if not named:
            raise GraphError("a graph needs at least one agent")
        clash = [key for key, _ in named if key in self.inputs]
        if clash:
            raise GraphError(f"node `{clash[0]}` has the name of an input: rename one of them")
        self._agents = dict(named)
        self._edges = self._check_edges(edges)
        self._order = self._sorted()
        place = {node: index for index, node in enumerate(self._agents)}
        self._nodes = {
            node: Node(
                node,
                agent,
                rounds.get(node, 1),
                tuple(
                    Sender(
                        source,
                        self._agents[source].name,
                        own=self._agents[source].name == agent.name,
                    )
                    for source in sorted(self._edges_into(node), key=place.__getitem__)
                ),
            )
            for node, agent in self._agents.items()
        }
        self.answer = self._check_answer(answer)
        for item in self._nodes.values():
            _check_ambiguity(item)
            item.agent.resolve(item.senders, self.inputs)

    def _check_edges(self, edges: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        checked = tuple(dict.fromkeys(edges))
        for edge in checked:
            for end in edge:
                if end not in self._agents:
                    known = ", ".join(f"`{key}`" for key in self._agents)
                    raise GraphError(
                        f"edge `{edge[0]}` → `{edge[1]}` names `{end}`, which is no node: {known}"
                    )
        return checked

    def _sorted(self) -> tuple[str, ...]:
        graph = self._digraph()
        try:
            place = {node: index for index, node in enumerate(self._agents)}
            return tuple(nx.lexicographical_topological_sort(graph, key=place.__getitem__))
        except nx.NetworkXUnfeasible:
            cycle = nx.find_cycle(graph)
            path = " → ".join(f"`{edge[0]}`" for edge in cycle)
            raise GraphError(
                f"the graph has a cycle: {path} → `{cycle[0][0]}`; unroll rounds into nodes of "
                "their own (as `debate` does)"
            ) from None

    def _digraph(self) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self._agents)
        graph.add_edges_from(self._edges)
        return graph

    def _edges_into(self, node: str) -> list[str]:
        return [source for source, target in self._edges if target == node]

    def _check_answer(self, answer: str | None) -> str:
        if answer is not None:
            if answer not in self._nodes:
                raise GraphError(f"the answer node `{answer}` is not in the graph")
            return answer
        senders = {source for source, _ in self._edges}
        last = [node for node in self._order if node not in senders]
        if len(last) > 1:
            names = ", ".join(f"`{node}`" for node in last)
            raise GraphError(f"the graph ends in {names}: say which one is the `answer`")
        return last[0]

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Nodes by name, in the order they were given."""
        return self._nodes

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Edges, in the order they were given."""
        return self._edges

    @property
    def order(self) -> tuple[str, ...]:
        """Node names in topological order."""
        return self._order

    def levels(self) -> list[list[str]]:
        """Nodes by distance from the start: those of one level may run at once."""
        return [
            sorted(level, key=self._order.index)
            for level in nx.topological_generations(self._digraph())
        ]

    def successors(self, node: str) -> list[str]:
        """Nodes that hear `node`."""
        return [target for source, target in self._edges if source == node]

    def template(self, node: str, codec: Codec) -> Template:
        """The token-level template of `node`."""
        item = self._nodes[node]
        return item.agent.template(codec, item.senders, self.inputs)

    def to_networkx(self) -> nx.DiGraph[str]:
        """A `networkx.DiGraph` whose nodes carry `agent` and `round`; a copy."""
        graph = self._digraph()
        for node in self._nodes.values():
            graph.nodes[node.name].update(agent=node.agent, round=node.round)
        graph.graph.update(name=self.name, answer=self.answer, inputs=self.inputs)
        return graph

    @classmethod
    def from_networkx(
        cls,
        graph: nx.DiGraph[str],
        *,
        answer: str | None = None,
        name: str | None = None,
        inputs: Iterable[str] | None = None,
    ) -> AgentGraph:
        """A graph from a `networkx.DiGraph` whose nodes have an `agent` attribute."""
        if not graph.is_directed() or graph.is_multigraph():
            raise GraphError("an agent graph is made from a networkx.DiGraph: edges have one way")
        agents: dict[str, Agent] = {}
        for node, data in graph.nodes(data=True):
            agent = data.get("agent")
            if not isinstance(agent, Agent):
                raise GraphError(
                    f"networkx node {node!r} carries no agent: add_node({node!r}, agent=Agent(...))"
                )
            agents[str(node)] = agent
        return cls(
            agents,
            [(str(a), str(b)) for a, b in graph.edges],
            answer=answer if answer is not None else graph.graph.get("answer"),
            name=name or graph.graph.get("name") or "graph",
            inputs=inputs or graph.graph.get("inputs", ("task",)),
            rounds={str(node): data.get("round", 1) for node, data in graph.nodes(data=True)},
        )

    def __repr__(self) -> str:
        return f"AgentGraph({self.name!r}, {len(self._nodes)} nodes, answer={self.answer!r})"


def _check_ambiguity(node: Node) -> None:
    """Two different agents of one name would fill the same placeholder."""
    others = Counter(sender.agent for sender in node.senders if not sender.own)
    for agent, count in others.items():
        if count > 1 and f"{{{agent}}}" in node.agent.prompt:
            raise GraphError(
                f"placeholder `{{{agent}}}` of `{node.name}` could be {count} messages: name the "
                "nodes instead, or use `{messages}`"
            )
