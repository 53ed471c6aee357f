"""MMLU: questions of 57 subjects with four answers to choose from (Hendrycks et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import LETTERS, by_letter
from kvcomm.tasks.rows import Hub, text_of, texts_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import answer_team


def read(row: Mapping[str, Any], name: str) -> Task:
    """`question` and `choices` as the text; `answer` is the index of the right one."""
    choices = texts_of(row, "choices")
    if len(choices) != len(LETTERS):
        raise ValueError(f"it has {len(choices)} choices, not {len(LETTERS)}")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))
    asked = f"{text_of(row, 'question')}\n{listed}"
    answer = text_of(row, "answer")
    if answer not in ("0", "1", "2", "3"):
        raise ValueError(f"'answer' must be 0 to 3, not {answer!r:.40}")
    return Task(name, asked, LETTERS[int(answer)])


SUITE = Suite(
    "mmlu",
    "questions of 57 subjects, four choices each",
    read,
    by_letter,
    answer_team,
    ask="End with: Answer: LETTER.",
    hub=Hub("cais/mmlu", "test", "all"),
)
