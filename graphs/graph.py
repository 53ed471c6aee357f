"""An immutable, validated DAG of agents over `networkx.DiGraph`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import networkx as nx

from kvcomm.agents import Agent, Tool
from kvcomm.agents.agent import Sender
from kvcomm.errors import GraphError
from kvcomm.graphs.draw import draw, mermaid
from kvcomm.graphs.structure import (
    checked_answer,
    checked_edges,
    digraph,
    neighbours,
    topological,
)
from kvcomm.prompt import Codec, Exchange, Template

Said = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Node:
    """One call of an agent or a tool: `senders` are the texts it hears, in graph order."""

    name: str
    agent: Agent | Tool
    round: int
    senders: tuple[Sender, ...]

    @property
    def hears(self) -> list[str]:
        """The nodes behind `senders`."""
        return list(dict.fromkeys(sender.node for sender in self.senders))

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of what the node sends: its own, or the outputs of a tool."""
        outputs = self.agent.outputs if isinstance(self.agent, Tool) else ()
        return outputs or (self.name,)


class AgentGraph:
    """Who hears whom, checked when it is built and unchanged afterwards.

    `agents` is a list (each node is named after its agent) or a mapping from node name to agent;
    tools stand among them. An edge `(a, b)` hands a's message to b. The order of `agents` is the
    order of messages in a prompt. `answer` names the node whose message is the result; by default
    the only last node. `inputs` are the texts a run brings. `rounds` maps nodes to debate rounds
    (default 1).

    Raises `GraphError` for no agents, duplicate or unknown names, a cycle, several last nodes
    and no `answer`, and for placeholders and messages that do not match.
    """

    def __init__(
        self,
        agents: Iterable[Agent | Tool] | Mapping[str, Agent | Tool],
        edges: Iterable[tuple[str, str]] = (),
        *,
        answer: str | None = None,
        name: str = "graph",
        inputs: Iterable[str] = ("task",),
        rounds: Mapping[str, int] | None = None,
    ) -> None:
        named = (
            list(agents.items())
            if isinstance(agents, Mapping)
            else [(name_of(agent), agent) for agent in agents]
        )
        for _, agent in named:
            name_of(agent)
        self._name = name
        self._inputs = tuple(inputs)
        rounds = rounds or {}
        twice = [key for key, count in Counter(key for key, _ in named).items() if count > 1]
        if twice:
            raise GraphError(f"two nodes are called `{twice[0]}`: give one of them another name")
        if not named:
            raise GraphError("a graph needs at least one agent")
        for key, _ in named:
            if not isinstance(key, str) or not key.strip() or not key.isprintable():
                raise GraphError(f"a node cannot be called {key!r}: use printable characters")
        _check_inputs(self._inputs, named)
        self._agents = dict(named)
        self._edges = checked_edges(self._agents, edges)
        self._order = topological(self._agents, self._edges)
        senders, self._successors = neighbours(self._agents, self._edges)
        self._nodes = {
            node: Node(
                node,
                agent,
                rounds.get(node, 1),
                tuple(
                    sender
                    for source in senders[node]
                    for sender in _sent(source, self._agents[source], agent)
                ),
            )
            for node, agent in self._agents.items()
        }
        self._answer = checked_answer(answer, self._order, self._successors, self._agents)
        self._earlier: tuple[Said, ...] = ()
        self._conversation = ""
        for item in self._nodes.values():
            if isinstance(item.agent, Agent):
                item.agent.resolve(item.senders, self._inputs)

    @property
    def name(self) -> str:
        """What the graph is called in traces and tables."""
        return self._name

    @property
    def inputs(self) -> tuple[str, ...]:
        """The texts a run brings."""
        return self._inputs

    @property
    def answer(self) -> str:
        """The node whose message is the result."""
        return self._answer

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Nodes by name, in the order they were given."""
        return MappingProxyType(self._nodes)

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
        depth: dict[str, int] = {}
        levels: list[list[str]] = []
        for node in self._order:
            depth[node] = max((depth[name] + 1 for name in self._nodes[node].hears), default=0)
            if depth[node] == len(levels):
                levels.append([])
            levels[depth[node]].append(node)
        return levels

    def successors(self, node: str) -> list[str]:
        """Nodes that hear `node`."""
        return list(self._successors[node])

    def with_agents(
        self, change: Callable[[Agent], Agent], inputs: Iterable[str] | None = None
    ) -> AgentGraph:
        """The same graph with every agent changed (tools are not), other `inputs` if given."""
        return AgentGraph(
            {
                name: change(node.agent) if isinstance(node.agent, Agent) else node.agent
                for name, node in self.nodes.items()
            },
            self.edges,
            answer=self.answer,
            name=self.name,
            inputs=self.inputs if inputs is None else inputs,
            rounds={name: node.round for name, node in self.nodes.items()},
        )

    def after(self, earlier: Sequence[Said], conversation: str) -> AgentGraph:
        """The same graph with prompts that begin with `earlier` turns of a conversation.

        A turn holds the token ids of its inputs, messages and tools' texts by name. Every node goes
        on with its own conversation: its prompts are the user's turns, its messages the
        assistant's. `conversation` names it; a graph without a name of that kind does not go on.
        """
        going_on = copy.copy(self)
        going_on._earlier, going_on._conversation = tuple(earlier), conversation
        return going_on

    @property
    def conversation(self) -> str:
        """The name of the conversation that the graph goes on with, if it does."""
        return self._conversation

    def template(self, node: str, codec: Codec) -> Template:
        """The token-level template of `node`. Raises `GraphError` for a tool: it has none."""
        item = self._nodes[node]
        if isinstance(item.agent, Tool):
            raise GraphError(f"node `{node}` is a tool: it has no prompt")
        earlier = [Exchange(said, said[node]) for said in self._earlier]
        return item.agent.template(codec, item.senders, self.inputs, earlier)

    def templates(self, codec: Codec) -> dict[str, Template]:
        """Token-level templates of all agents' nodes; nodes with equal prompts share one."""
        known: dict[object, Template] = {}
        templates: dict[str, Template] = {}
        for name, node in self._nodes.items():
            if isinstance(node.agent, Tool):
                continue
            agent, said = node.agent, tuple(turn[name] for turn in self._earlier)
            prompt = (agent.resolve(node.senders, self._inputs), agent.begins, agent.chat, said)
            if prompt not in known:
                known[prompt] = self.template(name, codec)
            templates[name] = known[prompt]
        return templates

    def to_networkx(self) -> nx.DiGraph[str]:
        """A `networkx.DiGraph` whose nodes carry `agent` and `round`; a copy."""
        graph = digraph(self._agents, self._edges)
        for node in self._nodes.values():
            graph.nodes[node.name].update(agent=node.agent, round=node.round)
        graph.graph.update(name=self.name, answer=self._answer, inputs=self._inputs)
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
        agents: dict[str, Agent | Tool] = {}
        for node, data in graph.nodes(data=True):
            agent = data.get("agent")
            if not isinstance(agent, Agent | Tool):
                raise GraphError(
                    f"networkx node {node!r} carries no agent: add_node({node!r}, agent=Agent(...))"
                )
            if str(node) in agents:
                raise GraphError(f"two networkx nodes are called `{node}`: rename one of them")
            agents[str(node)] = agent
        if answer is None and graph.graph.get("answer") is not None:
            answer = str(graph.graph["answer"])
        return cls(
            agents,
            [(str(a), str(b)) for a, b in graph.edges],
            answer=answer,
            name=name or graph.graph.get("name") or "graph",
            inputs=graph.graph.get("inputs", ("task",)) if inputs is None else inputs,
            rounds={str(node): data.get("round", 1) for node, data in graph.nodes(data=True)},
        )

    def __repr__(self) -> str:
        return f"AgentGraph({self.name!r}, {len(self._nodes)} nodes, answer={self._answer!r})"

    def __str__(self) -> str:
        return draw(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What notebooks show: a mermaid drawing where they can, else characters."""
        return {"text/plain": str(self), "text/markdown": f"```mermaid\n{mermaid(self)}\n```"}


def name_of(agent: Agent | Tool) -> str:
    """The name of an agent or a tool. Raises `GraphError` for anything else."""
    given: object = agent
    if isinstance(given, Agent | Tool):
        return given.name
    if callable(given) and not isinstance(given, type) and (name := getattr(given, "__name__", "")):
        called = name if name.isidentifier() else "function"
        raise GraphError(
            f"`{name}` is a function, not an agent: wrap it, Tool({called!r}, {called}); "
            "it is called with the texts it hears, by name, and returns a text"
        )
    raise GraphError(f"{given!r:.60} is no node: a graph is made of Agent(...) and Tool(...)")


def _sent(node: str, source: Agent | Tool, reader: Agent | Tool) -> list[Sender]:
    """What `reader` hears of a node: its message, or each text of a tool."""
    if isinstance(source, Tool) and source.outputs:
        return [Sender(node, source.name, output=name) for name in source.outputs]
    return [Sender(node, source.name, own=source.name == reader.name)]


def _check_inputs(inputs: Sequence[str], named: Sequence[tuple[str, Agent | Tool]]) -> None:
    """A placeholder means one thing: an input, or a message."""
    taken = Counter(inputs) + Counter(node for node, _ in named)
    for _, agent in named:
        for output in agent.outputs if isinstance(agent, Tool) else ():
            if output in taken:
                raise GraphError(
                    f"output `{output}` of tool `{agent.name}` has the name of an input, a node or "
                    "another output: rename one of them"
                )
            taken[output] += 1
    for name in inputs:
        if name in ("messages", "history"):
            raise GraphError(f"an input cannot be called `{name}`: `{{{name}}}` means messages")
        if any(name in (node, agent.name) for node, agent in named):
            raise GraphError(f"node `{name}` has the name of an input: rename one of them")
