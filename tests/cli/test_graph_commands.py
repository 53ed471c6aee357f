"""`kvcomm graph`."""

import json
from pathlib import Path

from kvcomm.cli.topologies import TOPOLOGIES


def test_show_draws_the_graph_binds_the_placeholders_and_list_has_all(cli) -> None:
    text = cli("graph", "show", "debate").out
    assert "2  solver@2   ├──┼─▶●" in text
    assert "You wrote before:" in text
    assert "{solver2@1}" in text
    assert "{messages}" not in text
    assert "judge  role-first, at most 256 tokens, exact" in text
    assert all(name in cli("graph", "list").out for name in TOPOLOGIES)
    listed = json.loads(cli("graph", "list", "--json").out)["graphs"]
    assert [graph["name"] for graph in listed] == list(TOPOLOGIES)


def test_show_json_and_mermaid(cli) -> None:
    shown = json.loads(cli("graph", "show", "chain", "--agents", "2", "--json").out)
    known = {"name": "chain", "answer": "editor", "inputs": ["task"]}
    assert known.items() <= shown.items()
    assert shown["levels"] == [["solver"], ["editor"]]
    editor = shown["nodes"][1]
    assert editor["senders"] == ["solver"]
    assert editor["prompt"].startswith("{task}\n\nsolver wrote:\n{solver}")
    role = "You check the work of others."
    for layout, where in (("role-first", "system"), ("shared-first", "prompt")):
        moved = cli("graph", "show", "chain", "--layout", layout, "--json").out
        assert role in json.loads(moved)["nodes"][1][where]
    assert cli("graph", "show", "chain", "--mermaid").out.startswith("flowchart TD\n")


def test_errors_are_one_line(cli, tmp_path: Path) -> None:
    ended = cli("graph", "show", "ring")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: graph 'ring' is unknown: choose one of chain,")
    path = tmp_path / "mine.py"
    path.write_text("import no_such_module\n")
    ended = cli("run", "x", "--graph", str(path))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{path}, line 1" in ended.err
