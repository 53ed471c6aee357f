"""HotpotQA, distractor setting: questions over two of ten passages (Yang et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_words
from kvcomm.tasks.rows import Hub, as_text, as_texts, list_of, row_id, text_of, texts_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import rag_team

# How many passages of a question are kept for graphs that read without a retriever.
PASSAGES = 6
SHORT = "End with: Answer: the answer in a few words, or yes or no."


def paragraph(title: str, text: str) -> str:
    """A passage as one paragraph: its title in the first line."""
    return f"{title}\n" + " ".join(text.split())


def read(row: Mapping[str, Any], name: str) -> Task:
    """The question and six passages in their order, those that support the answer among them.

    `context` and `supporting_facts` are lists of pairs, as in the files of the authors, or
    dictionaries of lists, as on the hub.
    """
    support = {title for title, _ in _pairs(list_of(row, "supporting_facts"), "title", "sent_id")}
    passages = [
        (title, paragraph(title, "".join(as_texts(sentences, "sentences"))))
        for title, sentences in _pairs(list_of(row, "context"), "title", "sentences")
    ]
    kept = sorted(enumerate(passages), key=lambda item: item[1][0] not in support)[:PASSAGES]
    return Task(
        row_id(row, "_id", "id", name=name),
        row["question"],
        text_of(row, "answer"),
        tuple(text for _, (_, text) in sorted(kept)),
        tuple(text for _, text in passages),
        texts_of(row, "answer_aliases"),
    )


def _pairs(value: Any, first: str, second: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        value = zip(value[first], value[second], strict=True)
    return [(as_text(left, first), right) for left, right in value]


SUITE = Suite(
    "hotpotqa",
    "questions over two of ten passages",
    read,
    by_words,
    rag_team,
    ask=SHORT,
    passages=PASSAGES,
    hub=Hub("hotpotqa/hotpot_qa", "validation", "distractor"),
)
