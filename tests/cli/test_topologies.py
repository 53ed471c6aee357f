"""From options to graphs."""

import pytest

from kvcomm.cli.topologies import TOPOLOGIES, build_graph
from kvcomm.errors import UsageError


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("agents", [None, 1, 2, 3, 4, 7, 12])
def test_every_topology_of_every_size(name: str, agents: int | None) -> None:
    graph = build_graph(name, agents=agents)
    count = agents or TOPOLOGIES[name].agents
    expected = 2 * count + 1 if name == "debate" else count
    assert len(graph.nodes) == expected
    assert graph.name == name
    for node in graph.nodes.values():  # nobody checks work that is not there
        assert count == 1 or node.senders or node.agent.name.startswith("solver")


def test_names_are_roles_in_turn() -> None:
    assert list(build_graph("chain").nodes) == ["solver", "critic", "editor"]
    assert list(build_graph("chain", agents=1).nodes) == ["solver"]
    names = "solver critic solver2 critic2 solver3 editor"
    assert list(build_graph("full", agents=6).nodes) == names.split()
    assert list(build_graph("debate", rounds=1).nodes) == ["solver@1", "solver2@1", "judge"]


def test_who_answers_hears_everyone_it_should() -> None:
    layered = build_graph("layered")
    assert layered.levels() == [["solver", "solver2"], ["critic", "critic2"], ["editor"]]
    tree = build_graph("tree")
    assert [len(level) for level in tree.levels()] == [4, 2, 1]
    assert {node.agent.name[:6] for node in tree.nodes.values() if not node.senders} == {"solver"}
    assert build_graph("star").answer == "editor"
    edges = [build_graph("random", agents=8, seed=seed).edges for seed in (0, 0, 1)]
    assert edges[0] == edges[1] != edges[2]


def test_options_change_every_agent() -> None:
    graph = build_graph("debate", max_tokens=7, temperature=0.5, layout="shared-first")
    for node in graph.nodes.values():
        assert node.agent.sampling.max_tokens == 7
        assert node.agent.sampling.temperature == 0.5
        assert node.agent.layout == "shared-first"
    assert graph.edges == build_graph("debate").edges
    assert graph.nodes["judge"].round == 2
    assert graph.nodes["judge"].agent.exact


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ring", {}, "graph 'ring' is unknown: choose one of chain, full"),
        ("chain", {"agents": 0}, "--agents 0: a graph needs at least 1 agent"),
        ("chain", {"agents": -2}, "at least 1 agent"),
        ("chain", {"rounds": 2}, "--rounds belongs to --graph debate"),
        ("debate", {"rounds": 0}, "use at least 1"),
        ("chain", {"max_tokens": 0}, "max_tokens 0 must be at least 1"),
        ("chain", {"temperature": -1.0}, "temperature -1.0 is negative"),
        ("chain", {"layout": "sideways"}, "layout 'sideways' is unknown"),
        ("my.py", {"agents": 3}, "--agents and --rounds do not apply to a graph file"),
        ("my.py", {}, "graph file 'my.py' does not exist"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_graph(name, **options)
