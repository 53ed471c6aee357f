"""What the documents say is run: code blocks, examples, commands, links, file names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kvcomm.cli import main
from kvcomm.cli.app import app
from kvcomm.cli.eval import SuiteFirst

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
TINY = "random:llama-tiny"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of every fenced block."""
    for _, language, code in FENCED.findall(page.read_text("utf-8")):
        yield language, code


def commands() -> Iterator[tuple[str, str]]:
    """Every `kvcomm` command line in a fenced block, a prompt in front or not."""
    for page in PAGES:
        for language, code in blocks(page):
            for line in code.splitlines() if language != "python" else ():
                if line.removeprefix("$ ").startswith("kvcomm "):
                    yield page.name, line.removeprefix("$ ")
    for example in sorted((ROOT / "examples").glob("*.py")):
        for line in re.findall(r"kvcomm (?:run|trace|graph) .*", example.read_text("utf-8")):
            yield example.name, line.removesuffix('"""')


# Pages whose blocks build on each other.
WHOLE = {"extending.md"}


def python_blocks(page: Path) -> list[str]:
    """The Python of a page: block by block, or all of it."""
    found = [code for language, code in blocks(page) if language == "python"]
    return ["\n".join(found)] if page.name in WHOLE else found


PYTHON = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(python_blocks(page))
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code.replace("smollm2-135m", TINY), request.node.name, "exec"), space)
    if "engine" in space:
        space["engine"].close()


@pytest.mark.slow
def test_the_readme_shows_what_its_python_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(blocks(ROOT / "README.md"))
    at = next(i for i, (language, _) in enumerate(found) if language == "python")
    code, shown = found[at][1], found[at + 1][1]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "README.md", "exec"), space)
    space["session"].close()
    space["engine"].close()

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("trace: ")]

    assert lines(capsys.readouterr().out) == lines(shown)


@pytest.mark.parametrize("name", ["two_agents", "inspect_reuse", "chat"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "KVCOMM_MODEL": TINY, "KVCOMM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())  # examples leave nothing behind


def test_the_graph_file_of_the_examples_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(ROOT / "examples" / "my_graph.py")
    monkeypatch.setattr(sys, "argv", ["kvcomm", "run", "Why?", "--graph", file, "--model", TINY])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "physicist" in capsys.readouterr().out


def test_every_example_is_short_and_tested() -> None:
    files = {file.stem: file for file in (ROOT / "examples").glob("*.py")}
    assert set(files) == {"two_agents", "my_graph", "inspect_reuse", "chat"}
    for file in files.values():
        assert len(file.read_text("utf-8").splitlines()) < 40, file.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", path):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_in_the_documents_parse(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if isinstance(command, SuiteFirst):
        command = command.commands["suite"]
    assert not hasattr(command, "commands"), f"{page}: no such command: {line}"
    command.make_context("kvcomm", words)  # raises for unknown options and missing arguments


def test_there_are_commands_and_blocks_to_check() -> None:
    assert {"README.md", "cli.md", "my_graph.py"} <= {page for page, _ in commands()}
    assert len(PYTHON) >= 4


def test_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test", "test-full", "check"} <= named <= targets


def test_the_architecture_names_every_package_and_only_files_that_exist() -> None:
    page = ARCHITECTURE.read_text("utf-8")
    for named in re.findall(r"`((?:[\w]+/)*\w+\.py)`", page):
        homes = (ROOT, ROOT / "kvcomm", *(ROOT / "kvcomm").glob("*/"), ROOT / "kvcomm/engine/local")
        assert any((home / named).exists() for home in homes), named
    for folder in (ROOT / "kvcomm").iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert f"`{folder.name}/`" in page, folder.name


def test_every_rule_of_scheduling_has_a_test() -> None:
    section = ARCHITECTURE.read_text("utf-8").split("What is computed next")[1]
    rules = re.findall(r"^(\d)\. ", section, re.MULTILINE)
    tests = (ROOT / "tests/engine/test_scheduler.py").read_text("utf-8")
    assert rules == [str(number) for number in range(1, 8)]
    for rule in rules:
        assert f'("{rule} ' in tests, rule
