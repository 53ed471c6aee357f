"""Topologies: who hears whom, in which order, and who answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.agents import Agent, judge
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

A, B, C, D, E = (Agent(name, prompt="{task}{history}{messages}") for name in "abcde")


def hears(graph: AgentGraph) -> dict[str, list[str]]:
    return {name: [s.node for s in node.senders] for name, node in graph.nodes.items()}


def test_chain() -> None:
    graph = chain(A, B, C)
    assert hears(graph) == {"a": [], "b": ["a"], "c": ["b"]}
    assert (graph.answer, graph.order, graph.name) == ("c", ("a", "b", "c"), "chain")


def test_fully_connected() -> None:
    graph = fully_connected(A, B, C, D)
    assert hears(graph) == {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "b", "c"]}
    assert graph.answer == "d"


def test_star() -> None:
    graph = star(A, B, C, D)
    assert hears(graph) == {"b": [], "c": [], "d": [], "a": ["b", "c", "d"]}
    assert graph.answer == "a"
    assert star(A).answer == "a"


def test_layered() -> None:
    graph = layered([A, B], [C], [D, E])
    assert hears(graph) == {"a": [], "b": [], "c": ["a", "b"], "d": ["c"], "e": ["c"]}
    assert graph.levels() == [["a", "b"], ["c"], ["d", "e"]]
    assert graph.answer == "e"


def test_tree() -> None:
    graph = tree(A, B, C, D, E)
    assert hears(graph) == {"a": ["b", "c"], "b": ["d", "e"], "c": [], "d": [], "e": []}
    assert graph.answer == "a"
    assert hears(tree(A, B, C, D, branching=3))["a"] == ["b", "c", "d"]
    assert hears(tree(A, B, C, branching=1)) == {"a": ["b"], "b": ["c"], "c": []}


def test_debate_without_judge() -> None:
    graph = debate(A, B, rounds=3)
    assert hears(graph) == {
        "a@1": [],
        "b@1": [],
        "a@2": ["a@1", "b@1"],
        "b@2": ["a@1", "b@1"],
        "a@3": ["a@2", "b@2"],
        "b@3": ["a@2", "b@2"],
    }
    assert [node.round for node in graph.nodes.values()] == [1, 1, 2, 2, 3, 3]
    assert graph.levels() == [["a@1", "b@1"], ["a@2", "b@2"], ["a@3", "b@3"]]
    assert graph.answer == "b@3"
    assert [s.own for s in graph.nodes["a@2"].senders] == [True, False]


def test_debate_with_judge() -> None:
    graph = debate(A, B, rounds=2, judge=judge())
    assert hears(graph)["judge"] == ["a@2", "b@2"]
    assert graph.nodes["judge"].round == 2
    assert graph.answer == "judge"


def test_debate_of_one_round_is_independent_answers() -> None:
    assert debate(A, B, rounds=1).edges == ()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_random_dag_loses_no_work(seed: int, density: float) -> None:
    graph = random_dag(A, B, C, D, E, density=density, seed=seed)
    place = list(graph.nodes)
    assert all(place.index(source) < place.index(target) for source, target in graph.edges)
    assert graph.answer == "e"
    assert all(graph.successors(name) for name in place[:-1])
    if density == 1.0:
        assert hears(graph) == hears(fully_connected(A, B, C, D, E))
    if density == 0.0:
        assert hears(graph)["e"] == ["a", "b", "c", "d"]


def test_random_dag_is_drawn_by_its_seed() -> None:
    drawn = [random_dag(A, B, C, D, E, seed=seed).edges for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


@given(count=st.integers(1, 12), branching=st.integers(1, 4))
def test_every_agent_of_a_tree_reaches_the_root(count: int, branching: int) -> None:
    graph = tree(*(Agent(f"n{i}") for i in range(count)), branching=branching)
    assert len(graph.edges) == count - 1
    assert all(len(node.senders) <= branching for node in graph.nodes.values())
    assert graph.levels()[-1] == ["n0"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (chain, "at least one agent"),
        (fully_connected, "at least one agent"),
        (layered, "at least one agent"),
        (tree, "at least one agent"),
        (random_dag, "at least one agent"),
        (debate, "at least one agent"),
        (lambda: debate(judge=judge()), "at least one agent who answers"),
        (lambda: debate(A, rounds=0), "0 rounds says nothing: use at least 1"),
        (lambda: tree(A, branching=0), "0 branches does not branch: use at least 1"),
        (lambda: layered([A], [], [B]), "a layer without agents"),
        (lambda: chain(A, A), "two nodes are called `a`"),
        (lambda: tree(A, A), "two nodes are called `a`"),
        (lambda: debate(A, A), "two agents are called `a`"),
        (lambda: debate(A, B, judge=A), "two agents are called `a`"),
        (lambda: star(A, A), "`a`"),
    ],
)
def test_what_is_no_topology_says_why(build: Callable[[], AgentGraph], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        build()
