"""A suite: how rows become tasks, which team works on them, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.tasks.graders import Grade, Graders
from kvcomm.tasks.rows import Hub, read_rows, row_id, rows_of
from kvcomm.tasks.task import Task, passage_names

Read = Callable[[Mapping[str, Any], str], Task]
Team = Callable[[Graders], AgentGraph]


@dataclass(frozen=True)
class Suite:
    """A set of tasks of one kind.

    `read(row, name)` makes a task of a row; `grade(task, answer, graders)` scores an answer and
    says why; `team(graders)` is the graph that works on it by default. `ask` tells every graph in
    which form the answer is wanted. `passages` is how many texts each task brings beside its
    question; rows with fewer are left out. Rows come from `path`, or from a folder, from kvcomm
    itself (`shipped`) or from the `hub`.
    """

    name: str
    about: str
    read: Read
    grade: Grade
    team: Team
    ask: str = ""
    passages: int = 0
    hub: Hub | None = None
    shipped: bool = False
    path: Path | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of a task's inputs beside `task`."""
        return passage_names(self.passages)

    def tasks(self, folder: Path | None = None) -> list[Task]:
        """The suite's tasks. Raises `UsageError` for rows that are missing or not the suite's."""
        tasks: dict[str, Task] = {}
        for row in (
            read_rows(self.path)
            if self.path
            else rows_of(self.name, self.hub, self.shipped, folder)
        ):
            name = f"{self.name}-{row.number}"
            try:
                task = self.read(row.value, name)
                task = replace(task, id=row_id(vars(task), "id", name=name), row=row.value)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                what = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise UsageError(f"{row.where} is no row of {self.name}: {what}") from None
            if not isinstance(task.input, str) or not task.input.strip():
                raise UsageError(f"{row.where} is no row of {self.name}: its text is empty")
            if task.id in tasks:
                raise UsageError(f"{row.where}: id {task.id!r} is already taken")
            if len(task.passages) == self.passages:
                tasks[task.id] = task
        if not tasks:
            raise UsageError(f"{self.name} has no rows that can be used")
        return list(tasks.values())
