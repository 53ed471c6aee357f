"""Tasks: a text to work on, and what a right answer is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kvcomm.errors import UsageError

DATA = Path(__file__).parent / "data"
FIELDS = ("id", "input", "target")


@dataclass(frozen=True)
class Task:
    """One sample of a suite. `target` is the right answer, as text.

    `passages` are texts to read beside the question: the inputs `passage1`, `passage2`, …
    """

    id: str
    input: str
    target: str
    passages: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs of a graph that works on this task."""
        names = passage_names(len(self.passages))
        return {"task": self.input, **dict(zip(names, self.passages, strict=True))}


def passage_names(count: int) -> tuple[str, ...]:
    """The names of the inputs that hold a task's passages."""
    return tuple(f"passage{number}" for number in range(1, count + 1))


def load_jsonl(path: Path) -> list[Task]:
    """Tasks from a file with one JSON object a line: `id`, `input`, `target`.

    Other fields are ignored. Raises `UsageError`, with the line, for a file that cannot
    be read or a line that is no task.
    """
    tasks: dict[str, Task] = {}
    for number, line in numbered_lines(path):
        task = _parse(line, f"{path}, line {number}")
        if task.id in tasks:
            raise UsageError(f"{path}, line {number}: id {task.id!r} is already taken")
        tasks[task.id] = task
    if not tasks:
        raise UsageError(f"{path} holds no tasks: write one JSON object a line")
    return list(tasks.values())


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that hold something, numbered from 1.

    Raises `UsageError` for a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read tasks from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read tasks from {path}: it is not UTF-8 text") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str) -> Task:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where} is no JSON object but {type(value).__name__}")
    for field in FIELDS:
        if field not in value:
            raise UsageError(f"{where} has no {field!r}: a task has {', '.join(FIELDS)}")
        if not isinstance(value[field], str) or not value[field].strip():
            raise UsageError(f"{where}: {field!r} must be a text that is not empty")
    return Task(value["id"], value["input"], value["target"])
