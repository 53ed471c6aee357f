"""Graphs of thousands of nodes are checked, drawn and scheduled fast; errors stay short."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.errors import GraphError
from kvcomm.graphs import AgentGraph
from kvcomm.reuse.policy import Exact
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.lanes import levels

MANY = 10_000
NAMES = [f"n{number}" for number in range(MANY)]
AGENT = Agent("worker", prompt="{task}\n\n{messages}", sampling=Sampling(max_tokens=1))
AGENTS = dict.fromkeys(NAMES, AGENT)
CHAIN = list(itertools.pairwise(NAMES))
WIDE = [(name, NAMES[-1]) for name in NAMES[:-1]]
# 100 layers of 100, each node with five readers in the next one, and one that hears the last.
LAYERED = [
    (NAMES[at], NAMES[at - at % 100 + 100 + (at + step) % 100])
    for at in range(MANY - 200)
    for step in range(0, 100, 20)
] + [(name, NAMES[-1]) for name in NAMES[-200:-1]]
SHAPES = {"chain": CHAIN, "wide": WIDE, "layered": LAYERED}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


@pytest.fixture(autouse=True)
def shallow() -> Iterator[None]:
    """A graph's depth must not become that of the stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(600)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_thousand_nodes_are_checked_and_drawn(shape: str) -> None:
    with at_most(2):
        graph = AgentGraph(AGENTS, SHAPES[shape], answer=NAMES[-1])
    with at_most(2):
        drawing = str(graph)
    assert len(graph.levels()) == {"chain": MANY, "wide": 2, "layered": 100}[shape]
    lines = drawing.split("\n")
    assert len(lines) < 210
    assert max(map(len, lines)) < 300
    assert lines[-1].startswith("and 9,900 more, ")


def test_show_prints_a_beginning(cli: Callable, tmp_path) -> None:
    (tmp_path / "big.py").write_text(
        "from tests.robust.test_graphs import AGENTS, WIDE, NAMES\n"
        "from kvcomm.graphs import AgentGraph\n"
        "graph = AgentGraph(AGENTS, WIDE, answer=NAMES[-1])\n"
    )
    with at_most(10):
        ended = cli("graph", "show", "big.py")
    assert (ended.code, len(ended.out) < 100_000) == (0, True)
    assert ended.out.rstrip().endswith("and 9,900 more nodes: --json has them all")
    for argv in (("full", "-n", "100000000"), ("debate", "-n", "9", "--rounds", "100000000")):
        ended = cli("graph", "show", *argv)
        assert (ended.code, "at most" in ended.err) == (2, True)


def test_a_chain_of_five_thousand_is_scheduled(tiny) -> None:
    few = NAMES[:5000]
    graph = AgentGraph(dict.fromkeys(few, AGENT), CHAIN[:4999])
    with at_most(10):
        GraphRun(tiny, RunSpec(graph, Exact(), {"task": "x"}))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("n1", "n1")], "has a cycle: `n1` → `n1`"),
        ([*CHAIN, (NAMES[-1], NAMES[0])], "9,980 more → `n0`"),
        ([("n1", "nowhere")], "names `nowhere`, which is no node: .* and 9,980 more"),
        ([], "the graph ends in .* and 9,980 more: say which one"),
    ],
)
def test_errors_of_large_graphs_are_short(edges: list[tuple[str, str]], message: str) -> None:
    with at_most(2), pytest.raises(GraphError, match=message) as raised:
        AgentGraph(AGENTS, edges)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", ["", " ", "a\x1b[31m", "a\nb", "a\u202eb", "a\ud800"])
def test_a_node_name_that_cannot_be_printed_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match="cannot be called"):
        AgentGraph({name: AGENT})


def test_levels_are_as_they_were_when_each_was_searched_for() -> None:
    senders = {"d": ["b", "c"], "a": [], "c": ["a", "gone"], "b": ["a"], "x": ["y"], "y": ["x"]}
    assert levels(senders) == [["a"], ["c", "b"], ["d"], ["x", "y"]]
    assert levels({}) == []
