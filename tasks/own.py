"""A user's own suite: a Python file with a `Suite`, or JSON lines with `input` and `target`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcomm.own_file import Wanted, load_own
from kvcomm.tasks.graders import Graders, by_words
from kvcomm.tasks.rows import read_rows, row_id, texts_of
from kvcomm.tasks.scoring import Score
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import answer_team, rag_team

SUITE = Wanted(Suite, "suite", 'suite = Suite("mine", "about it", read, grade, team)')


def suite_file(spec: str) -> Suite:
    """The suite of `FILE.py[:NAME]`. Raises `UsageError`."""
    return load_own(spec, SUITE)


def read(row: Mapping[str, Any], name: str) -> Task:
    """`input` and `target`; if they are there `id`, and `accepted` and `corpus`, lists of texts."""
    for field in ("input", "target"):
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field!r} must be a text that is not empty")
    accepted, corpus = (texts_of(row, field) for field in ("accepted", "corpus"))
    id_ = row_id(row, "id", name=name)
    return Task(id_, row["input"], row["target"], corpus=corpus, accepted=accepted)


def by_target(task: Task, answer: str, graders: Graders) -> Score:
    """The same words as the target; a target that is a number or LaTeX, the same value."""
    if any(sign.isdigit() or sign == "\\" for sign in task.target):
        score = graders.math.score(answer, task.target)
        if score.correct:
            return score
    return by_words(task, answer, graders)


def suite_of_lines(path: Path) -> Suite:
    """The suite of a JSONL file. Tasks with a `corpus` are read by a team with a retriever."""
    searched = any(row.value.get("corpus") for row in read_rows(path))
    return Suite(
        path.stem,
        f"tasks of {path}",
        read,
        by_target,
        rag_team if searched else answer_team,
        ask="End with: Answer: YOUR ANSWER.",
        path=path,
    )
