"""`docs/cli.md` keeps up with the commands."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kvcomm.cli.app import app
from kvcomm.cli.topologies import GRAPH
from kvcomm.own_file import load_own

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
TEXT = DOCS.read_text(encoding="utf-8")
MODEL = ["--model", "random:llama-tiny", "--state", "none", "--max-tokens", "4"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def commands(command: Any, path: str = "kvcomm") -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
    for name, child in (children or {}).items():
        yield from commands(child, f"{path} {name}")


def test_every_command_and_option_is_described() -> None:
    for path, command in commands(typer.main.get_command(app)):
        group = path.split(" ")[1]
        section = TEXT[TEXT.index(f"## `kvcomm {group}") :].split("\n## ")[0]
        assert path.split(" ")[-1] in section
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in section, (path, option)


def test_the_json_of_run_has_the_documented_keys(cli) -> None:
    documented = json.loads(blocks("json")[0].replace('"…"', '""'))
    real = json.loads(cli("run", "x", *MODEL, "--json").out)
    assert list(documented) == list(real)
    assert list(documented["calls"][0]) == list(real["calls"][0])
    assert list(documented["calls"][0]["segments"][0]) == list(real["calls"][0]["segments"][0])
    assert set(documented["totals"]) == set(real["totals"])


def test_the_graph_file_and_the_commands_run(cli, tmp_path: Path) -> None:
    (tmp_path / "my_graph.py").write_text(blocks("python")[0], encoding="utf-8")
    assert load_own("my_graph.py", GRAPH).answer == "writer"
    for line in "".join(blocks("bash")).strip().split("\n"):
        program, *argv = shlex.split(line)
        assert program == "kvcomm"
        if argv[0] == "run":
            ended = cli(*argv, *MODEL, "--out", f"runs/{len(list(tmp_path.rglob('trace.jsonl')))}")
            assert ended.code == 0, ended.err


def test_the_drawing_is_what_is_printed(cli) -> None:
    printed = cli("graph", "show", "debate").out
    shown = next(b for b in blocks("text") if b.startswith("$ kvcomm graph show debate"))
    assert printed.startswith(shown.split("\n", 1)[1].removesuffix("…\n"))
