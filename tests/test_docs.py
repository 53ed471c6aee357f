"""What the documents say is run: code blocks, examples, commands, links, file names."""

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
    found = [code for language, code in blocks(page) if language == "python"]
    return ["\n".join(found)] if page.name in WHOLE else found


PYTHON = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(python_blocks(page))
]


def executed(code: str, name: str) -> None:
    """Run Python, and close what it leaves open."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), space)
    for opened in ("session", "engine"):
        if opened in space:
            space[opened].close()


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    executed(code.replace("smollm2-135m", TINY), "block")


@pytest.mark.slow
def test_the_readme_shows_what_its_python_prints(tmp_path: Path, monkeypatch, capsys) -> None:
    found = list(blocks(ROOT / "README.md"))
    at = next(i for i, (language, _) in enumerate(found) if language == "python")
    monkeypatch.chdir(tmp_path)
    executed(found[at][1], "README.md")
    printed, shown = (
        [line for line in text.splitlines() if not line.startswith("trace: ")]
        for text in (capsys.readouterr().out, found[at + 1][1])
    )
    assert printed == shown


EXAMPLES = ("two_agents", "inspect_reuse", "chat", "my_graph")
MAIN = ("-c", "from kvcomm.cli import main; main()", "run", "Why?", "--model", TINY, "--graph")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    file = ROOT / "examples" / f"{name}.py"
    assert len(file.read_text("utf-8").splitlines()) < 40
    done = subprocess.run(
        [sys.executable, *(MAIN if name == "my_graph" else ()), str(file)],
        cwd=tmp_path,
        env={**os.environ, "KVCOMM_MODEL": TINY, "KVCOMM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "physicist" in done.stdout or name != "my_graph"
    assert done.stdout.strip()
    # Examples leave nothing behind.
    assert name == "my_graph" or not list(tmp_path.iterdir())


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


def test_there_are_commands_blocks_and_examples_to_check() -> None:
    assert {"README.md", "cli.md", "my_graph.py"} <= {page for page, _ in commands()}
    assert len(PYTHON) >= 4
    assert len(list((ROOT / "examples").glob("*.py"))) == len(EXAMPLES)


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
        homes = (ROOT, *(ROOT / "kvcomm").glob("**/"))
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
