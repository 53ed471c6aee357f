"""code-mini: Python functions written for kvcomm, in HumanEval's format."""

from __future__ import annotations

from kvcomm.tasks.graders import by_tests
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites.humaneval import FENCED, read
from kvcomm.tasks.teams import code_team

SUITE = Suite(
    "code-mini",
    "54 Python functions, half of them easy, shipped with kvcomm",
    read,
    by_tests,
    code_team,
    ask=FENCED,
    shipped=True,
)
