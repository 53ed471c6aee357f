"""What agents say and rows hold is printed as text: no escape, no markup."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robust.test_hostile_traces import ATTACK, STEERING

MODEL = ("--model", "random:llama-tiny", "--state", "none", "--max-tokens", "4")
GRAPH = f"""
from kvcomm.agents import Agent
from kvcomm.graphs import AgentGraph
attack = {ATTACK!r}
agent = Agent("a", system=attack, prompt=attack + "{{task}}", post=lambda text: attack)
graph = AgentGraph([agent], name=attack)
"""


@pytest.fixture
def own(tmp_path: Path) -> None:
    """A graph and a suite that attack the terminal."""
    (tmp_path / "mine.py").write_text(GRAPH, encoding="utf-8")
    rows = [
        {"id": ATTACK, "input": ATTACK, "target": "x"},
        {"id": f"{ATTACK} long", "input": "x" * 50_000, "target": "x"},
    ]
    (tmp_path / f"s{ATTACK.replace('/', '')}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def check(ended: object, code: int = 0) -> None:
    """It printed the attack's letters and nothing else of it."""
    assert ended.code == code, ended.err  # type: ignore[attr-defined]
    said = ended.out + ended.err  # type: ignore[attr-defined]
    assert not STEERING.search(said)
    assert "[bold]x[" in said
    assert ":smile:" in said


def test_a_run_and_its_graph(cli: Callable, own: None) -> None:
    words = (*MODEL, "--graph", "mine.py", "--reuse", "exact")
    check(cli("run", ATTACK, *words))
    check(cli("run", "x", *words, "--json"))
    check(cli("graph", "show", "mine.py"))


def test_an_error_of_ones_own_file(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(f"raise ValueError({ATTACK!r})", encoding="utf-8")
    check(cli("graph", "show", "bad.py"), 2)
    check(cli("graph", "show", ATTACK), 2)


def test_an_evaluation_and_its_report(cli: Callable, own: None) -> None:
    (suite,) = Path().glob("*.jsonl")
    words = ("--graph", "mine.py", "--reuse", "dense", "--out", "out", "--retries", "0")
    check(cli("eval", str(suite), *(w for w in MODEL if w not in ("--state", "none")), *words))
    check(cli("eval", "report", "out"))
