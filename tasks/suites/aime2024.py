"""AIME 2024: thirty problems, each answer an integer from 0 to 999."""

from __future__ import annotations

from kvcomm.tasks.graders import by_math
from kvcomm.tasks.rows import Hub
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.math500 import BOXED, read
from kvcomm.tasks.teams import math_team

SUITE = Suite(
    "aime2024",
    "30 problems of AIME I and II 2024",
    read,
    by_math,
    math_team,
    ask=BOXED,
    hub=Hub("HuggingFaceH4/aime_2024", "train"),
)
