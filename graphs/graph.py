"""An immutable, validated DAG of agents over `networkx.DiGraph`, and its drawings."""

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
from kvcomm.prompt import Codec, Exchange, Template
from kvcomm.trace.lanes import draw_lanes, marked
from kvcomm.trace.text import MOST, listed

Said = Mapping[str, tuple[int, ...]]
Agents = Mapping[str, Agent | Tool]
# What mermaid would not take for text, in its own way of writing characters.
ENTITIES = str.maketrans({sign: f"#{ord(sign)};" for sign in '"<>&#`'})


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


@dataclass(frozen=True, init=False, eq=False, repr=False)
class AgentGraph:
    """Who hears whom, checked when it is built and unchanged afterwards.

    `agents` is a list (each node is named after its agent) or a mapping from node name to agent;
    tools stand among them. An edge `(a, b)` hands a's message to b. The order of `agents` is the
    order of messages in a prompt; `order` is a topological one. `answer` names the node whose
    message is the result; by default the only last node. `inputs` are the texts a run brings.
    `rounds` maps nodes to debate rounds (default 1). `conversation` is the name of the one that
    the graph goes on with, if it does.

    Raises `GraphError` for no agents, duplicate or unknown names, a cycle, several last nodes
    and no `answer`, and for placeholders and messages that do not match.
    """

    name: str
    inputs: tuple[str, ...]
    answer: str
    edges: tuple[tuple[str, str], ...]
    order: tuple[str, ...]
    conversation: str
    _nodes: dict[str, Node]
    _shape: nx.DiGraph[str]
    _earlier: tuple[Said, ...]

    def __init__(
        self,
        agents: Iterable[Agent | Tool] | Agents,
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
        inputs = tuple(inputs)
        _check_nodes(inputs, named)
        members, edges = dict(named), tuple(dict.fromkeys((a, b) for a, b in edges))
        shape = _digraph(members, edges)
        place = {node: index for index, node in enumerate(members)}
        nodes = {}
        for node, agent in members.items():
            heard = sorted(shape.predecessors(node), key=place.__getitem__)
            senders = tuple(sender for one in heard for sender in _sent(one, members[one], agent))
            nodes[node] = Node(node, agent, (rounds or {}).get(node, 1), senders)
        order = tuple(nx.lexicographical_topological_sort(shape, key=place.__getitem__))
        vars(self).update(name=name, inputs=inputs, edges=edges, order=order, conversation="")
        vars(self).update(answer=_answer(answer, shape, members, order))
        vars(self).update(_nodes=nodes, _shape=shape, _earlier=())
        for item in nodes.values():
            if isinstance(item.agent, Agent):
                item.agent.resolve(item.senders, inputs)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Nodes by name, in the order they were given."""
        return MappingProxyType(self._nodes)

    def levels(self) -> list[list[str]]:
        """Nodes by distance from the start: those of one level may run at once."""
        place = {node: index for index, node in enumerate(self.order)}
        levels = nx.topological_generations(self._shape)
        return [sorted(level, key=place.__getitem__) for level in levels]

    def successors(self, node: str) -> list[str]:
        """Nodes that hear `node`."""
        return list(self._shape.successors(node))

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
        vars(going_on).update(_earlier=tuple(earlier), conversation=conversation)
        return going_on

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
            if isinstance(agent := node.agent, Tool):
                continue
            said = tuple(turn[name] for turn in self._earlier)
            prompt = (agent.resolve(node.senders, self.inputs), agent.begins, agent.chat, said)
            if prompt not in known:
                known[prompt] = self.template(name, codec)
            templates[name] = known[prompt]
        return templates

    def to_networkx(self) -> nx.DiGraph[str]:
        """A `networkx.DiGraph` whose nodes carry `agent` and `round`; a copy."""
        graph = self._shape.copy()
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
        agents: dict[str, Agent | Tool] = {}
        for node, agent in graph.nodes(data="agent"):
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
        return f"AgentGraph({self.name!r}, {len(self._nodes)} nodes, answer={self.answer!r})"

    def __str__(self) -> str:
        """One lane a node, grouped by topological level; the nodes of a level may run at once."""
        senders = {name: node.hears for name, node in self.nodes.items()}
        notes = {
            name: marked(name == self.answer, node.agent.exact, isinstance(node.agent, Tool))
            for name, node in self.nodes.items()
        }
        return draw_lanes(senders, notes)

    def mermaid(self) -> str:
        """The graph as a mermaid flowchart: text only, to be pasted where mermaid is rendered."""
        # Mermaid ids may hold neither `@` nor keywords such as `end`, so nodes are numbered.
        ids = {name: f"n{index}" for index, name in enumerate(self.nodes)}
        lines = ["flowchart TD"]
        for name in self.nodes:
            opening, closing = ("([", "])") if name == self.answer else ("[", "]")
            lines.append(f'    {ids[name]}{opening}"{name.translate(ENTITIES)}"{closing}')
        lines += [f"    {ids[source]} --> {ids[target]}" for source, target in self.edges]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What notebooks show: a mermaid drawing where they can, else characters."""
        return {"text/plain": str(self), "text/markdown": f"```mermaid\n{self.mermaid()}\n```"}


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


def _check_nodes(inputs: Sequence[str], named: Sequence[tuple[str, Agent | Tool]]) -> None:
    """Nodes have names, each its own; and a placeholder means one thing: an input, or a message."""
    if not named:
        raise GraphError("a graph needs at least one agent")
    nodes = Counter(node for node, _ in named)
    for node, agent in named:
        name_of(agent)
        if nodes[node] > 1:
            raise GraphError(f"two nodes are called `{node}`: give one of them another name")
        if not isinstance(node, str) or not node.strip() or not node.isprintable():
            raise GraphError(f"a node cannot be called {node!r}: use printable characters")
    taken = nodes + Counter(inputs)
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


def _digraph(agents: Agents, edges: Sequence[tuple[str, str]]) -> nx.DiGraph[str]:
    """Nodes and edges. Raises `GraphError` for an end that is no node, and for a cycle."""
    for edge in edges:
        for end in edge:
            if end not in agents:
                raise GraphError(
                    f"edge `{edge[0]}` → `{edge[1]}` names `{end}`, which is no node: "
                    f"{listed(agents)}"
                )
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(agents)
    graph.add_edges_from(edges)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        shown = [f"`{node}`" for node in cycle[:MOST]]
        if len(cycle) > MOST:
            shown.append(f"{len(cycle) - MOST:,} more")
        raise GraphError(
            f"the graph has a cycle: {' → '.join(shown)} → `{cycle[0]}`; unroll rounds "
            "into nodes of their own (as `debate` does)"
        )
    return graph


def _answer(
    answer: str | None, shape: nx.DiGraph[str], agents: Agents, order: Sequence[str]
) -> str:
    """The node that answers. Raises `GraphError` where it is not clear, or cannot be."""
    if answer is None:
        last = [node for node in order if not shape.out_degree(node)]
        if len(last) > 1:
            raise GraphError(f"the graph ends in {listed(last)}: say which one is the `answer`")
        answer = last[0]
    if answer not in agents:
        raise GraphError(f"the answer node `{answer}` is not in the graph")
    if isinstance(agents[answer], Tool):
        raise GraphError(f"the answer node `{answer}` is a tool: let an agent have the last word")
    return answer
