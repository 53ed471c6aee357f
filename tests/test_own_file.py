"""A user's own graph file."""

from pathlib import Path

import pytest

from kvcomm.cli.topologies import GRAPH
from kvcomm.errors import UsageError
from kvcomm.own_file import load_own

HEAD = "from kvcomm.agents import solver, critic, editor\nfrom kvcomm.graphs import chain\n"


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


GRAPHS = f"""{HEAD}one = chain(solver())
two = chain(critic())
def make():
    return chain(editor())
"""


@pytest.mark.parametrize(
    ("text", "name", "nodes"),
    [
        (f"{HEAD}team = chain(solver(), editor())\nalias = team\n", "", ["solver", "editor"]),
        (GRAPHS, ":two", ["critic"]),
        (GRAPHS, ":make", ["editor"]),
        (HEAD + "from beside_it import two\ngraph = chain(*two)\n", "", ["solver", "critic"]),
    ],
)
def test_the_graph_that_is_meant(tmp_path: Path, text: str, name: str, nodes: list[str]) -> None:
    write(tmp_path, HEAD + "two = [solver(), critic()]\n", "beside_it.py")
    assert list(load_own(write(tmp_path, text) + name, GRAPH).nodes) == nodes


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1\nimport no_such_module\n", "", r"line 2: ModuleNotFoundError: No module named"),
        ("x = 1\n\ny = (\n", "", r"line 3: SyntaxError: '\(' was never closed"),
        ("raise SystemExit(3)\n", "", r"line 1: SystemExit: 3"),
        (
            HEAD + "graph = chain(solver(), solver())\n",
            "",
            r"line 3: two nodes are called `solver`",
        ),
        (HEAD, "", r"holds no graph: assign an AgentGraph"),
        (HEAD + "a = chain(solver())\nb = chain(critic())\n", "", r"2 graphs.*one of `a`, `b`"),
        (HEAD + "a = chain(solver())\n", "b", r"has no `b`: it has `a`"),
        ("x = 1\n", "b", r"has no `b`: it holds no graph"),
        (HEAD + "a = 3\n", "a", r"`a` of .* is no AgentGraph but int"),
        ("def a(n):\n    return n\n", "a", r"TypeError: a\(\) missing 1 required"),
        ("def a():\n    return 1 / 0\n", "a", r"line 2: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, name: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        load_own(f"{path}:{name}" if name else path, GRAPH)
