"""HumanEval: functions to complete, and tests to pass (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_tests
from kvcomm.tasks.rows import Hub, row_id, text_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import code_team

FENCED = "Answer with the complete function in one ```python block."


def read(row: Mapping[str, Any], name: str) -> Task:
    """`prompt`, the start of the function `entry_point`; `test` is run on it."""
    for field in ("entry_point", "test"):
        if not isinstance(row[field], str):
            raise ValueError(f"its {field} is no text")
    solution = text_of(row, "canonical_solution")
    return Task(row_id(row, "task_id", name=name), row["prompt"], solution)


SUITE = Suite(
    "humaneval",
    "164 Python functions with tests",
    read,
    by_tests,
    code_team,
    ask=FENCED,
    hub=Hub("openai/openai_humaneval", "test"),
)
