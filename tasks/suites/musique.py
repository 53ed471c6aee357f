"""MuSiQue: questions of two to four hops over twenty passages (Trivedi et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_words
from kvcomm.tasks.rows import Hub
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.hotpotqa import PASSAGES, SHORT, paragraph
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import rag_team


def read(row: Mapping[str, Any], name: str) -> Task:
    """The question and six passages, the supporting ones among them; all of them to search in."""
    found = [
        (not item["is_supporting"], paragraph(item["title"], item["paragraph_text"]))
        for item in row["paragraphs"]
    ]
    kept = sorted(enumerate(found), key=lambda item: item[1][0])[:PASSAGES]
    return Task(
        str(row.get("id", name)),
        row["question"],
        str(row["answer"]),
        tuple(text for _, (_, text) in sorted(kept)),
        tuple(text for _, text in found),
        tuple(map(str, row.get("answer_aliases", ()))),
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
