"""MuSiQue: questions of two to four hops over twenty passages (Trivedi et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_words
from kvcomm.tasks.rows import Hub, list_of, row_id, text_of, texts_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.hotpotqa import PASSAGES, SHORT, paragraph
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import rag_team


def read(row: Mapping[str, Any], name: str) -> Task:
    """The question and six passages, the supporting ones among them; all of them to search in."""
    found = [
        (
            not item["is_supporting"],
            paragraph(text_of(item, "title"), text_of(item, "paragraph_text")),
        )
        for item in list_of(row, "paragraphs")
    ]
    kept = sorted(enumerate(found), key=lambda item: item[1][0])[:PASSAGES]
    return Task(
        row_id(row, "id", name=name),
        row["question"],
        text_of(row, "answer"),
        tuple(text for _, (_, text) in sorted(kept)),
        tuple(text for _, text in found),
        texts_of(row, "answer_aliases"),
    )


SUITE = Suite(
    "musique",
    "questions of two to four hops over twenty passages",
    read,
    by_words,
    rag_team,
    ask=SHORT,
    passages=PASSAGES,
    hub=Hub("dgslibisey/MuSiQue", "validation"),
)
