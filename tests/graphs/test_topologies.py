"""Topologies: who hears whom, in which order, and who answers."""

from collections.abc import Callable
from itertools import pairwise

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


@pytest.mark.parametrize(
    ("graph", "heard", "answer"),
    [
        (chain(A, B, C), "a b:a c:b", "c"),
        (fully_connected(A, B, C, D), "a b:a c:ab d:abc", "d"),
        (star(A, B, C, D), "b c d a:bcd", "a"),
        (star(A), "a", "a"),
        (layered([A, B], [C], [D, E]), "a b c:ab d:c e:c", "e"),
        (tree(A, B, C, D, E), "d e c b:de a:bc", "a"),
        (tree(A, B, C, D, branching=3), "b c d a:bcd", "a"),
        (tree(A, B, C, branching=1), "c b:c a:b", "a"),
    ],
)
def test_who_hears_whom(graph: AgentGraph, heard: str, answer: str) -> None:
    expected = (node.partition(":") for node in heard.split())
    assert hears(graph) == {name: list(senders) for name, _, senders in expected}
    assert graph.answer == answer


def test_debate_without_judge() -> None:
    graph = debate(A, B, rounds=3)
    assert graph.levels() == [["a@1", "b@1"], ["a@2", "b@2"], ["a@3", "b@3"]]
    for first, second in pairwise(graph.levels()):
        assert [hears(graph)[node] for node in second] == [first, first]
    assert [node.round for node in graph.nodes.values()] == [1, 1, 2, 2, 3, 3]
    assert graph.answer == "b@3"
    assert [s.own for s in graph.nodes["a@2"].senders] == [True, False]
    assert debate(A, B, rounds=1).edges == ()


def test_debate_with_judge() -> None:
    graph = debate(A, B, rounds=2, judge=judge())
    assert hears(graph)["judge"] == ["a@2", "b@2"]
    assert graph.nodes["judge"].round == 2
    assert graph.answer == "judge"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_random_dag_loses_no_work(seed: int, density: float) -> None:
    graph, again = (random_dag(A, B, C, D, E, density=density, seed=seed) for _ in range(2))
    place = list(graph.nodes)
    assert all(place.index(source) < place.index(target) for source, target in graph.edges)
    assert (graph.answer, graph.edges) == ("e", again.edges)
    assert all(graph.successors(name) for name in place[:-1])
    if density == 1.0:
        assert hears(graph) == hears(fully_connected(A, B, C, D, E))
    if density == 0.0:
        assert hears(graph)["e"] == ["a", "b", "c", "d"]


def test_random_dag_is_drawn_by_its_seed() -> None:
    assert random_dag(A, B, C, D, E, seed=3).edges != random_dag(A, B, C, D, E, seed=4).edges


@given(count=st.integers(1, 12), branching=st.integers(1, 4))
def test_every_agent_of_a_tree_reaches_the_root(count: int, branching: int) -> None:
    graph = tree(*(Agent(f"n{i}") for i in range(count)), branching=branching)
    assert len(graph.edges) == count - 1
    assert all(len(node.senders) <= branching for node in graph.nodes.values())
    assert graph.levels()[-1] == ["n0"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        *((build, "at least one agent") for build in (chain, fully_connected, layered, tree)),
        *((build, "at least one agent") for build in (random_dag, debate)),
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
