"""What the documents say is run: code blocks, examples, commands, links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
TINY = "random:llama-tiny"


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text("utf-8")) if kind == language]


PYTHON = [(page.name, code) for page in PAGES for code in blocks(page, "python")]
COMMANDS = [
    line.partition("  #")[0]
    for page in PAGES
    for code in blocks(page, "bash")
    for line in code.splitlines()
    if line.startswith("kvcomm ")
]


@pytest.mark.parametrize(
    ("name", "code"), PYTHON, ids=[f"{n}-{i}" for i, (n, _) in enumerate(PYTHON)]
)
def test_python_blocks_run(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(compile(code.replace("smollm2-135m", TINY), name, "exec"), space)
    if "engine" in space:
        space["engine"].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["two_agents", "inspect_reuse"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "KVCOMM_MODEL": TINY},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_the_graph_file_of_the_examples_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvcomm.cli import main

    monkeypatch.chdir(tmp_path)
    file = str(ROOT / "examples" / "my_graph.py")
    monkeypatch.setattr(sys, "argv", ["kvcomm", "run", "Why?", "--graph", file, "--model", TINY])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "physicist" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_commands_in_the_documents_exist() -> None:
    import typer

    from kvcomm.cli.app import app

    root = typer.main.get_command(app)
    assert COMMANDS
    for line in COMMANDS:
        words, command = shlex.split(line)[1:], root
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert not hasattr(command, "commands"), line
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test", "test-full", "check"} <= named <= targets


def test_every_source_file_is_named_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for file in [*ROOT.glob("kvcomm/kv/*.py"), *ROOT.glob("kvcomm/engine/*.py")]:
        if file.stem not in ("__init__", "divergence", "sampling"):
            assert file.name in page, file.name
