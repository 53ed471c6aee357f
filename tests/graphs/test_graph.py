"""Agent graphs: validation, order, immutability, networkx."""

from itertools import pairwise
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.agents import Agent, critic, judge, solver
from kvcomm.errors import GraphError
from kvcomm.graphs import (
    AgentGraph,
    chain,
    debate,
    fully_connected,
    layered,
    random_dag,
    star,
    tree,
)
from tests.codecs import byte_codec

A, B, C = Agent("a"), Agent("b"), Agent("c")


@pytest.mark.parametrize(
    ("agents", "edges", "options", "message"),
    [
        ([], [], {}, "a graph needs at least one agent"),
        ([A, Agent("a")], [], {}, "two nodes are called `a`: give one of them another name"),
        ([A], [("a", "x")], {}, r"edge `a` → `x` names `x`, which is no node: `a`"),
        ([A, B], [("x", "b")], {}, r"names `x`, which is no node: `a`, `b`"),
        ([A, B], [], {}, r"the graph ends in `a`, `b`: say which one is the `answer`"),
        ([A], [], {"answer": "x"}, "the answer node `x` is not in the graph"),
        ([A], [("a", "a")], {}, r"cycle: `a` → `a`"),
        ([A, B, C], [("a", "b"), ("b", "c"), ("c", "b")], {}, r"cycle: `b` → `c` → `b`"),
        ([A], [], {"inputs": ("task", "a")}, "node `a` has the name of an input"),
        ({"x": A}, [], {"inputs": ("task", "a")}, "`a` has the name of an input"),
        ([A], [], {"inputs": ("task", "history")}, "an input cannot be called `history`"),
        (
            [Agent("d", prompt="{tusk}")],
            [],
            {},
            "placeholder `{tusk}` of agent `d` has no prod",
        ),
        ([A, Agent("d", prompt="{task}")], [("a", "d")], {}, "add `{a}` or `{messages}`"),
        (
            {"x": solver(), "y": solver(), "z": Agent("d", prompt="{solver}")},
            [("x", "z"), ("y", "z")],
            {},
            r"could be 2 messages: name a node \(`\{x\}`, `\{y\}`\)",
        ),
    ],
)
def test_a_graph_that_cannot_run_is_refused(
    agents: Any, edges: list[tuple[str, str]], options: dict, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        AgentGraph(agents, edges, **options)


def search(texts: Any) -> str:
    return "nothing"


@pytest.mark.parametrize(
    "build",
    [
        *(lambda: AgentGraph([search, A]), lambda: AgentGraph({"a": A, "b": search}, answer="a")),
        *(lambda: chain(search, A), lambda: fully_connected(A, search), lambda: tree(A, search)),
        *(lambda: debate(A, B, judge=search), lambda: star(A, search), lambda: star(search, A)),
        *(lambda: layered([search], [A]), lambda: layered([A], [search])),
        lambda: random_dag(A, search),
    ],
)
def test_a_function_among_the_agents_is_told_to_be_a_tool(build: Any) -> None:
    with pytest.raises(GraphError, match=r"is a function.* Tool\('\w+', search\)"):
        build()


@pytest.mark.parametrize("node", ["solver", None, object(), Agent])
def test_what_is_no_node_is_named(node: Any) -> None:
    with pytest.raises(GraphError, match=r"is made of Agent\(\.\.\.\) and Tool"):
        AgentGraph([A, node])


def test_a_long_cycle_is_named_in_order() -> None:
    edges = list(pairwise(["n0", "n1", "n2", "n3", "n4", "n0"]))
    with pytest.raises(GraphError, match="unroll rounds") as raised:
        AgentGraph([Agent(name) for name, _ in edges], edges)
    path = str(raised.value).split(": ")[1].split(";")[0].replace("`", "").split(" → ")
    assert path[0] == path[-1]
    assert all(step in edges for step in pairwise(path))


def test_senders_come_in_the_order_of_the_agents_not_of_the_edges() -> None:
    graph = AgentGraph([B, A, C], [("a", "c"), ("b", "c"), ["a", "c"]], answer="a")
    assert [s.node for s in graph.nodes["c"].senders] == ["b", "a"]
    assert graph.edges == (("a", "c"), ("b", "c"))  # one that is given twice is one
    assert graph.successors("a") == ["c"]
    assert graph.successors("c") == []
    assert repr(graph) == "AgentGraph('graph', 3 nodes, answer='a')"


def test_nodes_may_be_named_apart_from_their_agents() -> None:
    graph = AgentGraph({"first": solver(), "second": solver()}, [("first", "second")])
    (sender,) = graph.nodes["second"].senders
    assert (sender.node, sender.agent, sender.own) == ("first", "solver", True)


def test_the_template_of_a_node_has_its_inputs_and_messages() -> None:
    reader = Agent("reader", prompt="{passage} {messages}")
    graph = AgentGraph([A, reader], [("a", "reader")], inputs=("task", "passage"))
    assert graph.template("a", byte_codec()).names == ("task",)
    assert graph.template("reader", byte_codec()).names == ("passage", "a")


@st.composite
def dags(draw: st.DrawFn) -> AgentGraph:
    count = draw(st.integers(1, 8))
    order = draw(st.permutations(range(count)))
    pairs = [(order[i], order[j]) for j in range(count) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    named = [(f"n{a}", f"n{b}") for a, b in edges]
    agents = [Agent(f"n{i}") for i in range(count)]
    return AgentGraph(agents, named, answer=f"n{order[-1]}")


@given(dags())
def test_order_and_levels_are_topological(graph: AgentGraph) -> None:
    place = {name: i for i, name in enumerate(graph.order)}
    assert set(place) == set(graph.nodes)
    assert all(place[source] < place[target] for source, target in graph.edges)
    levels = graph.levels()
    assert sorted(name for level in levels for name in level) == sorted(graph.nodes)
    depth = {name: i for i, level in enumerate(levels) for name in level}
    for name, node in graph.nodes.items():
        assert depth[name] == max((depth[s.node] + 1 for s in node.senders), default=0)
    assert all(level == sorted(level, key=place.__getitem__) for level in levels)


@given(dags())
def test_networkx_and_back(graph: AgentGraph) -> None:
    copy = AgentGraph.from_networkx(graph.to_networkx())
    assert copy.nodes == graph.nodes
    assert sorted(copy.edges) == sorted(graph.edges)
    assert (copy.answer, copy.name, copy.inputs) == (graph.answer, graph.name, graph.inputs)


def test_what_networkx_carries_and_what_the_caller_says_over_it() -> None:
    rounds = debate(solver(), critic(), judge=judge())
    assert AgentGraph.from_networkx(rounds.to_networkx()).nodes == rounds.nodes
    plain = chain(A, B).to_networkx()
    graph = AgentGraph.from_networkx(plain, answer="a", name="mine", inputs=("task", "more"))
    assert (graph.answer, graph.name, graph.inputs) == ("a", "mine", ("task", "more"))
    numbered = nx.DiGraph([(1, 2)], answer=1)
    nx.set_node_attributes(numbered, {1: A, 2: B}, "agent")
    graph = AgentGraph.from_networkx(numbered)
    assert (list(graph.nodes), graph.edges, graph.answer) == (["1", "2"], (("1", "2"),), "1")


def test_networkx_graphs_that_are_no_agent_graph() -> None:
    with pytest.raises(GraphError, match=r"node 'x' carries no agent: add_node\('x', agent=Agent"):
        AgentGraph.from_networkx(nx.DiGraph([("x", "y")]))
    for wrong in (nx.Graph(), nx.MultiDiGraph()):
        with pytest.raises(GraphError, match=r"networkx\.DiGraph"):
            AgentGraph.from_networkx(wrong)
    twins = nx.DiGraph()
    twins.add_node(1, agent=A)
    twins.add_node("1", agent=B)
    with pytest.raises(GraphError, match="two networkx nodes are called `1`"):
        AgentGraph.from_networkx(twins)


def test_a_graph_cannot_be_changed() -> None:
    agents = {"a": A, "b": B}
    graph = AgentGraph(agents, [("a", "b")])
    del agents["a"]
    graph.to_networkx().remove_node("a")
    graph.levels().clear()
    graph.successors("a").clear()
    assert (list(graph.nodes), graph.levels()) == (["a", "b"], [["a"], ["b"]])
    assert (len(graph.to_networkx()), graph.successors("a")) == (2, ["b"])
    with pytest.raises(TypeError):
        graph.nodes["c"] = graph.nodes["a"]
    for name in ("answer", "name", "inputs", "nodes", "edges", "order"):
        with pytest.raises(AttributeError):
            setattr(graph, name, None)
