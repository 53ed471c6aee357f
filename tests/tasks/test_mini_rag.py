"""rag-mini: every question can be answered from the passages that are said to support it."""

from typing import Any

import pytest

from kvcomm.tasks import DATA, SUITES
from tests.tasks.real import read_lines

ROWS: list[dict[str, Any]] = read_lines(DATA / "rag-mini.jsonl")
IDS = [row["_id"] for row in ROWS]


def test_54_questions_of_their_own_easy_ones_and_hard_ones_in_turn() -> None:
    assert len(ROWS) == len(set(IDS)) == len({row["question"] for row in ROWS}) == 54
    # Easy ones need one sentence of a short passage; so a few rows have both.
    easy = [
        len(row["supporting_facts"]) == 1 and all(len(text) == 2 for _, text in row["context"])
        for row in ROWS
    ]
    assert easy == [True, False] * 24 + [True] * 6
    assert sum(row["answer"] in ("yes", "no") for row in ROWS) == 4
    assert [task.id for task in SUITES["rag-mini"].tasks(DATA)] == IDS


def test_a_title_stands_for_one_text() -> None:
    texts: dict[str, list[str]] = {}
    for row in ROWS:
        for title, sentences in row["context"]:
            assert texts.setdefault(title, sentences) == sentences


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_context_holds_eight_passages_of_spaced_sentences(row: dict[str, Any]) -> None:
    assert len(row["context"]) == len({title for title, _ in row["context"]}) == 8
    for _, (first, *others) in row["context"]:
        assert first == first.strip()
        assert all(text == " " + text.strip() for text in others)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_answer_stands_in_a_supporting_sentence(row: dict[str, Any]) -> None:
    context = dict(row["context"])
    facts = row["supporting_facts"]
    assert facts
    assert all(0 <= index < len(context[title]) for title, index in facts)
    if row["answer"] not in ("yes", "no"):
        assert any(row["answer"] in context[title][index] for title, index in facts)
