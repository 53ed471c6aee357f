"""`kvcomm demo` with a small random model: its shape, not its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.cli.demo_team import Question

ARGS = ("demo", "--model", "random:llama-tiny", "--limit", "1")
MODES = ["dense", "exact", "kvcomm", "auto"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of the texts: to the random model each byte is a token."""
    whole = Question.passage.fget
    monkeypatch.setattr(Question, "passage", property(lambda question: whole(question)[:1000]))


def test_json_has_every_mode(cli) -> None:
    ended = cli(*ARGS, "--json", "--out", "here")
    assert ended.code == 0
    value = json.loads(ended.out)
    graph = value["graphs"]["readers"]
    assert (graph["questions"], list(graph["modes"])) == (1, MODES)
    dense, exact, kvcomm = (graph["modes"][mode] for mode in MODES[:3])
    assert dense["reused_tokens"] == 0
    assert dense["same_as_dense"] == exact["same_as_dense"] == 1
    assert exact["prompt_tokens"] == dense["prompt_tokens"] > 3 * 1000
    assert kvcomm["dense_calls"] == 3
    assert {mode for answers in graph["answers"].values() for mode in answers} == set(MODES)
    assert sorted(file.parent.name for file in Path("here").glob("*/trace.jsonl")) == sorted(
        f"mayor-{mode}" for mode in MODES
    )


def test_a_reader_sees_every_question_a_table_and_where_the_traces_are(cli) -> None:
    ended = cli(*ARGS)
    text = " ".join(ended.out.split())
    assert "question 1 of 1: Who is the mayor of Maddock Ferry" in text
    assert "the fact to find: Rosa Lindgren" in text
    assert "calls were dense" in text
    assert "…" not in ended.out.split("1 question, 3 calls each")[1]  # no figure is cut
    assert max(map(len, ended.out.split("\n"))) <= 80
    shown = ended.out.strip().split("\n")[-1].removeprefix("one of them: kvcomm ").split()
    assert cli(*shown).code == 0
    assert "1/4  mayor, dense: " in ended.err


def test_bad_limits(cli) -> None:
    ended = cli("demo", "--limit", "0")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --limit 0: the demo needs at least 1 question\n"
