"""Suites: real benchmark rows as tasks, read from a folder of JSONL files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.tasks.task import Task, numbered_lines, passage_names

FOLDER = "KVCOMM_DATA"
# How many passages of a question are kept: its supporting ones first.
PASSAGES = 6


@dataclass(frozen=True)
class Suite:
    """How the rows of a benchmark become tasks. `passages` is how many each task brings."""

    name: str
    read: Callable[[Mapping[str, Any], str], Task]
    passages: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of a task's inputs beside `task`."""
        return passage_names(self.passages)


def _gsm8k(row: Mapping[str, Any], name: str) -> Task:
    return Task(name, row["question"], str(row["answer"]).rpartition("####")[2].strip())


def _hotpotqa(row: Mapping[str, Any], name: str) -> Task:
    """The question and six passages in their order, those that support the answer among them."""
    support = {title for title, _ in row["supporting_facts"]}
    context = list(enumerate(row["context"]))
    first = sorted(context, key=lambda item: item[1][0] not in support)[:PASSAGES]
    passages = tuple(f"{title}\n{''.join(text)}" for _, (title, text) in sorted(first))
    return Task(str(row.get("_id", name)), row["question"], str(row["answer"]), passages)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("gsm8k", _gsm8k),
        Suite("hotpotqa", _hotpotqa, PASSAGES),
    )
}


def load_suite(name: str, folder: Path | None = None) -> tuple[Suite, list[Task]]:
    """A suite and its tasks, from `FOLDER/NAME.jsonl`; the folder may stand in `KVCOMM_DATA`.

    Rows with fewer passages than the suite promises are left out. Raises `UsageError` for an
    unknown suite, a file that is not there, and a row that has not the suite's fields.
    """
    if name not in SUITES:
        raise UsageError(f"suite {name!r} is unknown: choose one of {', '.join(SUITES)}")
    suite = SUITES[name]
    place = folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    if place is None:
        raise UsageError(
            f"{name} needs its rows: pass --data DIR or set {FOLDER} (DIR/{name}.jsonl)"
        )
    path = place / f"{name}.jsonl"
    tasks = []
    for number, line in numbered_lines(path):
        try:
            task = suite.read(json.loads(line), f"{name}-{number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise UsageError(f"{path}, line {number} is no row of {name}: {what}") from None
        if len(task.passages) == suite.passages:
            tasks.append(task)
    return suite, tasks
