"""`kvcomm graph`."""

from __future__ import annotations

import json
from pathlib import Path

from kvcomm.cli.topologies import TOPOLOGIES


def test_list_names_every_topology(cli) -> None:
    text = cli("graph", "list").out
    assert all(name in text for name in TOPOLOGIES)
    listed = json.loads(cli("graph", "list", "--json").out)["graphs"]
    assert [graph["name"] for graph in listed] == list(TOPOLOGIES)


def test_show_draws_the_graph_and_binds_the_placeholders(cli) -> None:
    text = cli("graph", "show", "debate").out
    assert "2  solver@2   ├──┼─▶●" in text
    assert "You wrote before:" in text
    assert "{solver2@1}" in text
    assert "{messages}" not in text
    assert "judge  role-first, at most 256 tokens, exact" in text


def test_show_json(cli) -> None:
    shown = json.loads(cli("graph", "show", "chain", "--agents", "2", "--json").out)
    assert shown["name"] == "chain"
    assert shown["levels"] == [["solver"], ["editor"]]
    assert shown["answer"] == "editor"
    assert shown["inputs"] == ["task"]
    editor = shown["nodes"][1]
    assert editor["senders"] == ["solver"]
    assert editor["prompt"].startswith("{task}\n\nsolver wrote:\n{solver}")


def test_show_mermaid(cli) -> None:
    assert cli("graph", "show", "chain", "--mermaid").out.startswith("flowchart TD\n")


def test_layout_moves_the_role_text(cli) -> None:
    role = "You check the work of others."
    prompts = [
        json.loads(cli("graph", "show", "chain", "--layout", layout, "--json").out)["nodes"][1]
        for layout in ("role-first", "shared-first")
    ]
    assert role in prompts[0]["system"]
    assert role in prompts[1]["prompt"]


def test_an_unknown_graph(cli) -> None:
    ended = cli("graph", "show", "ring")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: graph 'ring' is unknown: choose one of chain,")


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_the_error_is_one_line_with_the_file(cli, tmp_path: Path) -> None:
    path = write(tmp_path, "import no_such_module\n")
    ended = cli("run", "x", "--graph", path)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"{path}, line 1" in ended.err
