"""The suites that come with kvcomm, one a file, and a user's own."""

from __future__ import annotations

from pathlib import Path

from kvcomm.errors import UsageError
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites import (
    aime2024,
    code_mini,
    gsm8k,
    hotpotqa,
    humaneval,
    math500,
    math_mini,
    mmlu,
    musique,
    rag_mini,
    wiki2,
)
from kvcomm.tasks.suites.own import suite_file, suite_of_lines
from kvcomm.tasks.task import Task

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        math500,
        aime2024,
        gsm8k,
        humaneval,
        mmlu,
        hotpotqa,
        musique,
        wiki2,
        math_mini,
        code_mini,
        rag_mini,
    )
}


def find_suite(name: str) -> Suite:
    """The suite called `name`, or that of a file: FILE.py[:NAME], FILE.jsonl.

    Raises `UsageError` for anything else.
    """
    if name in SUITES:
        return SUITES[name]
    if name.endswith(".jsonl"):
        return suite_of_lines(Path(name))
    if ".py" in name:
        return suite_file(name)
    raise UsageError(
        f"suite {name!r} is unknown: choose one of {', '.join(SUITES)}, a FILE.jsonl with `input` "
        "and `target`, or FILE.py[:NAME]"
    )


def load_suite(name: str, folder: Path | None = None) -> tuple[Suite, list[Task]]:
    """A suite and its tasks. Raises `UsageError` where there are none."""
    suite = find_suite(name)
    return suite, suite.tasks(folder)
