"""MATH-500: competition problems, their answers in LaTeX (Lightman et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_math
from kvcomm.tasks.rows import Hub, row_id, text_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import math_team

BOXED = "Put the final answer in \\boxed{}."


def read(row: Mapping[str, Any], name: str) -> Task:
    """`problem`, `answer`, and an id of its own where there is one."""
    return Task(row_id(row, "unique_id", "id", name=name), row["problem"], text_of(row, "answer"))


SUITE = Suite(
    "math500",
    "500 competition problems, five levels",
    read,
    by_math,
    math_team,
    ask=BOXED,
    hub=Hub("HuggingFaceH4/MATH-500", "test"),
)
