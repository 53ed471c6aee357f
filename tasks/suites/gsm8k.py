"""GSM8K: grade-school word problems (Cobbe et al. 2021); the answer follows `####`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcomm.tasks.graders import by_math
from kvcomm.tasks.rows import Hub, text_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import math_team


def read(row: Mapping[str, Any], name: str) -> Task:
    """`question`, and what stands behind `####` in `answer`."""
    target = text_of(row, "answer").rpartition("####")[2].strip()
    return Task(name, row["question"], target.replace(",", ""))


SUITE = Suite(
    "gsm8k",
    "1,319 word problems of grade school",
    read,
    by_math,
    math_team,
    ask="End with the answer as a number: #### NUMBER.",
    hub=Hub("openai/gsm8k", "test", "main"),
)
