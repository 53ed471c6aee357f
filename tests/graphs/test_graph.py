"""Agent graphs: validation, order, immutability, networkx."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.agents import Agent, critic, editor, judge, solver
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


# --- what is refused ---


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
            "placeholder `{tusk}` of agent `d` has no producer",
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
        lambda: AgentGraph([search, A]),
        lambda: AgentGraph({"a": A, "search": search}, answer="a"),
        lambda: chain(search, A),
        lambda: fully_connected(A, search),
        lambda: debate(A, B, judge=search),
        lambda: star(A, search),
        lambda: star(search, A),
        lambda: layered([search], [A]),
        lambda: layered([A], [search]),
        lambda: tree(A, search),
        lambda: random_dag(A, search),
    ],
)
def test_a_function_among_the_agents_is_told_to_be_a_tool(build: Any) -> None:
    with pytest.raises(GraphError, match=r"`search` is a function.* Tool\('search', search\)"):
        build()


@pytest.mark.parametrize("node", ["solver", None, object(), Agent])
def test_what_is_no_node_is_named(node: Any) -> None:
    with pytest.raises(GraphError, match=r"is made of Agent\(\.\.\.\) and Tool"):
        AgentGraph([A, node])


def test_a_long_cycle_is_named_in_order() -> None:
    names = [f"n{i}" for i in range(5)]
    edges = [(names[i], names[(i + 1) % 5]) for i in range(5)]
    with pytest.raises(GraphError) as raised:
        AgentGraph([Agent(name) for name in names], edges)
    message = str(raised.value)
    path = message.split(": ")[1].split(";")[0].replace("`", "").split(" → ")
    assert path[0] == path[-1]
    assert all(step in edges for step in pairwise(path))
    assert "unroll rounds" in message


# --- what a graph knows ---


def test_senders_come_in_the_order_of_the_agents_not_of_the_edges() -> None:
    graph = AgentGraph([B, A, C], [("a", "c"), ("b", "c")])
    assert [s.node for s in graph.nodes["c"].senders] == ["b", "a"]
    assert graph.edges == (("a", "c"), ("b", "c"))
    assert graph.successors("a") == ["c"]
    assert graph.successors("c") == []


def test_an_edge_given_twice_is_one() -> None:
    assert AgentGraph([A, B], [("a", "b"), ["a", "b"]]).edges == (("a", "b"),)


def test_a_node_that_is_not_last_may_answer() -> None:
    assert AgentGraph([A, B], [("a", "b")], answer="a").answer == "a"


def test_nodes_may_be_named_apart_from_their_agents() -> None:
    graph = AgentGraph({"first": solver(), "second": solver()}, [("first", "second")])
    (sender,) = graph.nodes["second"].senders
    assert (sender.node, sender.agent, sender.own) == ("first", "solver", True)


def test_more_inputs_than_the_task() -> None:
    reader = Agent("reader", prompt="{task} {passage}")
    assert AgentGraph([reader], inputs=("task", "passage")).inputs == ("task", "passage")


def test_the_template_of_a_node_has_its_inputs_and_messages() -> None:
    graph = chain(solver(), critic())
    assert graph.template("solver", byte_codec()).names == ("task",)
    assert graph.template("critic", byte_codec()).names == ("task", "solver")


def test_a_graph_says_what_it_is() -> None:
    assert repr(chain(A, B)) == "AgentGraph('chain', 2 nodes, answer='b')"


# --- order ---


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


# --- networkx ---


def test_rounds_survive_networkx() -> None:
    graph = debate(solver(), critic(), judge=judge())
    assert AgentGraph.from_networkx(graph.to_networkx()).nodes == graph.nodes


def test_what_the_caller_says_goes_over_what_the_graph_carries() -> None:
    plain = chain(A, B).to_networkx()
    graph = AgentGraph.from_networkx(plain, answer="a", name="mine", inputs=("task", "more"))
    assert (graph.answer, graph.name, graph.inputs) == ("a", "mine", ("task", "more"))


def test_numbered_networkx_nodes_become_names() -> None:
    plain = nx.DiGraph([(1, 2)], answer=1)
    nx.set_node_attributes(plain, {1: A, 2: B}, "agent")
    graph = AgentGraph.from_networkx(plain)
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


# --- immutability ---


def test_a_graph_cannot_be_changed() -> None:
    graph = chain(A, B)
    with pytest.raises(TypeError):
        graph.nodes["c"] = graph.nodes["a"]
    for name in ("answer", "name", "inputs", "nodes", "edges", "order"):
        with pytest.raises(AttributeError):
            setattr(graph, name, None)


def test_what_a_graph_hands_out_is_a_copy() -> None:
    graph = fully_connected(A, B, C)
    graph.to_networkx().remove_node("a")
    graph.levels().clear()
    graph.successors("a").clear()
    assert len(graph.to_networkx()) == len(graph.levels()) == 3
    assert graph.successors("a") == ["b", "c"]


def test_a_graph_keeps_nothing_of_the_mapping_it_was_made_from() -> None:
    agents = {"x": A, "y": B}
    graph = AgentGraph(agents, [("x", "y")])
    del agents["x"]
    assert list(graph.nodes) == ["x", "y"]


# --- size ---


def test_a_large_graph_is_built() -> None:
    graph = chain(*(Agent(f"n{i}") for i in range(4000)))
    assert len(graph.levels()) == 4000
    assert all(len(graph.successors(name)) == 1 for name in graph.order[:-1])


def test_agents_and_graphs_load_without_torch() -> None:
    code = "import sys, kvcomm.agents, kvcomm.graphs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_graph_of_roles_resolves() -> None:
    graph = chain(solver(), critic(), editor())
    names = [graph.template(node, byte_codec()).names for node in graph.order]
    assert names == [("task",), ("task", "solver"), ("task", "critic")]
