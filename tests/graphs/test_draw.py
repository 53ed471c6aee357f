"""Drawings are exact: every edge can be read back from the characters."""

import re

import pytest

from kvcomm.agents import critic, editor, judge, solver
from kvcomm.graphs import AgentGraph, chain, debate, fully_connected, random_dag, star
from kvcomm.trace.lanes import ROOMY


def edges_in(drawing: str) -> set[tuple[str, str]]:
    """Follow the lines: a join in a node's row belongs to the node that owns the column."""
    owner: dict[int, str] = {}
    found = set()
    lines = drawing.split("\n")
    start = min(line.index("●") for line in lines if "●" in line)
    for line in lines:
        if "●" not in line:
            continue
        name = line[:start].split()[-1]
        at = line.index("●")
        found |= {(owner[i], name) for i, char in enumerate(line[:at]) if char in "├└┼┴"}
        owner[at] = name
    return found


def solvers(count: int) -> list:
    return [solver(f"s{i}") for i in range(count)]


GRAPHS = [
    chain(solver(), critic(), editor()),
    fully_connected(*solvers(5)),
    debate(*solvers(3), rounds=3, judge=judge()),
    star(editor(), *solvers(4)),
    *(random_dag(*solvers(9), seed=seed, density=0.3) for seed in range(5)),
    random_dag(*solvers(ROOMY + 4), seed=1),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: f"{g.name}-{len(g.nodes)}")
def test_every_edge_is_drawn_and_nothing_else(graph: AgentGraph) -> None:
    assert edges_in(str(graph)) == set(graph.edges)


def test_a_chain_looks_like_this() -> None:
    assert str(chain(solver(), critic(), judge())) == "\n".join(
        [
            "1  solver  ●",
            "           │",
            "2  critic  └─▶●",
            "              │",
            "3  judge      └─▶●  answer, exact",
        ]
    )


def test_mermaid_has_every_edge_and_marks_the_answer() -> None:
    lines = debate(*solvers(2), judge=judge("end")).mermaid().split("\n")
    nodes = ['n0["s0@1"]', 'n1["s1@1"]', 'n2["s0@2"]', 'n3["s1@2"]', 'n4(["end"])']
    edges = [f"n{a} --> n{b}" for a, b in ((0, 2), (1, 2), (0, 3), (1, 3), (2, 4), (3, 4))]
    assert [line.strip() for line in lines] == ["flowchart TD", *nodes, *edges]


def test_mermaid_has_signs_of_its_own_only() -> None:
    name = '"]<img onerror=x>&#35;`'
    lines = AgentGraph({name: solver("a")}).mermaid().split("\n")
    label = lines[1].removeprefix('    n0(["').removesuffix('"])')
    assert not set(label) & set('"<>&`')
    spelled = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label)
    assert spelled == name


def test_notebooks_show_both_drawings() -> None:
    graph = chain(solver(), critic())
    bundle = graph._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {
        "text/plain": str(graph),
        "text/markdown": f"```mermaid\n{graph.mermaid()}\n```",
    }
