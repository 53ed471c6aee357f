"""rag-mini: every question can be answered from the passages that are said to support it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvcomm.tasks import DATA

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "rag-mini.jsonl").read_text(encoding="utf-8").splitlines()
]
IDS = [row["_id"] for row in ROWS]


def test_there_are_54_rows_with_questions_of_their_own() -> None:
    assert len(ROWS) == len(set(IDS)) == len({row["question"] for row in ROWS}) == 54


def test_easy_questions_and_hard_ones_take_turns() -> None:
    """Easy ones need one sentence of a short passage; so a few rows have both."""
    easy = [
        len(row["supporting_facts"]) == 1 and all(len(text) == 2 for _, text in row["context"])
        for row in ROWS
    ]
    assert easy == [True, False] * 24 + [True] * 6


def test_four_questions_are_comparisons() -> None:
    answers = [row["answer"] for row in ROWS]
    assert answers.count("yes") + answers.count("no") == 4


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
