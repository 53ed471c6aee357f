"""Questions over a corpus of all their passages, and other questions that read it before."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from kvcomm.tasks.retrieval import best
from kvcomm.tasks.task import Task

# A question, and passages, the best one first.
Over = tuple[str, tuple[str, ...]]


def over_corpus(
    tasks: Sequence[Task], count: int, cut: Callable[[str], list[str]] | None = None
) -> tuple[list[Over], list[str]]:
    """Each task's question over the `count` passages that BM25 finds for it, and the whole corpus.

    `cut` makes passages of another length of a row's own, put together.
    """
    corpus: dict[str, None] = {}
    for task in tasks:
        texts = cut("\n\n".join(task.corpus)) if cut else task.corpus
        corpus |= dict.fromkeys(texts)
    every = list(corpus)
    return [(task.input, tuple(best(every, task.input, count))) for task in tasks], every


def over_gold(tasks: Sequence[Task], count: int) -> tuple[list[Over], list[str]]:
    """Each task's question over the passages that hold its answer, where these are `count`."""
    found = [(task.input, task.gold[::-1]) for task in tasks if len(task.gold) == count]
    return found, list(dict.fromkeys(text for _, texts in found for text in texts))


def by_others(asked: Sequence[Over], corpus: Sequence[str], count: int) -> list[Over]:
    """All passages of a corpus, each in one prompt of another question's."""
    draw = random.Random(0)
    order = list(corpus)
    draw.shuffle(order)
    own: dict[str, set[str]] = {}
    for question, texts in asked:
        for text in texts:
            own.setdefault(text, set()).add(question)
    questions, found = [question for question, _ in asked], []
    for start in range(0, len(order), count):
        group = tuple(order[start : start + count])
        group += tuple(order[: count - len(group)])
        taken = set().union(*(own.get(text, set()) for text in group))
        others = [q for q in questions if q not in taken] or ["What do these texts say?"]
        found.append((draw.choice(others), group))
    return found
