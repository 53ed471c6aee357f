"""math-mini: sixty problems written for kvcomm, from one step to a contest's."""

from __future__ import annotations

from kvcomm.tasks.graders import by_math
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.math500 import BOXED, read
from kvcomm.tasks.teams import math_team

SUITE = Suite(
    "math-mini",
    "60 problems, half of them easy, shipped with kvcomm",
    read,
    by_math,
    math_team,
    ask=BOXED,
    shipped=True,
)
