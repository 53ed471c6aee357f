"""A user's own graph file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm.cli.topologies import GRAPH
from kvcomm.errors import UsageError
from kvcomm.own_file import load_own

HEAD = "from kvcomm.agents import solver, critic, editor\nfrom kvcomm.graphs import chain\n"


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_one_graph_under_any_names(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "team = chain(solver(), editor())\nalias = team\n")
    assert list(load_own(path, GRAPH).nodes) == ["solver", "editor"]


def test_a_name_picks_a_graph_or_a_function(tmp_path: Path) -> None:
    text = (
        HEAD
        + "one = chain(solver())\ntwo = chain(critic())\ndef make():\n    return chain(editor())\n"
    )
    path = write(tmp_path, text)
    assert list(load_own(path + ":two", GRAPH).nodes) == ["critic"]
    assert list(load_own(path + ":make", GRAPH).nodes) == ["editor"]


def test_files_beside_it_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path, HEAD + "agents = [solver(), critic()]\n", "my_agents_for_this_test.py")
    path = write(
        tmp_path,
        "from my_agents_for_this_test import agents\nfrom kvcomm.graphs import chain\n"
        "graph = chain(*agents)\n",
    )
    assert len(load_own(path, GRAPH).nodes) == 2


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
