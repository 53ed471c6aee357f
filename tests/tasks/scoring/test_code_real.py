"""HumanEval's own solutions, written as models write them, against HumanEval's own tests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvcomm.tasks.scoring.code import score_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox
from tests.tasks.real import real_rows

GUARD = '\n\nif __name__ == "__main__":\n    print(input())\n'
UNITTEST = """
import unittest


class TestIt(unittest.TestCase):
    def test_it(self):
        self.assertTrue(True)


if __name__ == "__main__":
    unittest.main()
"""

# What a model writes for a prompt whose function has this body.
FORMS: dict[str, Callable[[str, str], str]] = {
    "body": lambda prompt, body: body,
    "fenced function": lambda prompt, body: f"```python\n{prompt}{body}\n```",
    "body, another function": lambda prompt, body: f"{body}\n\ndef main():\n    print(1)\n",
    "body, main guard": lambda prompt, body: f"{body}{GUARD}",
    "body, closing fence": lambda prompt, body: f"{body}\n```\n",
    "function, closing fence": lambda prompt, body: f"{prompt}{body}\n```",
    "function, prose": lambda prompt, body: f"{prompt}{body}\n\nIt doesn't need more than this.\n",
    "fenced function, unittest": lambda prompt, body: f"```python\n{prompt}{body}\n{UNITTEST}```",
    "fenced body, first line stripped": lambda prompt, body: f"```python\n{body.strip()}\n```",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox(allow_unsandboxed=True)


def passing(sandbox: Sandbox, rows: list[dict[str, Any]], answers: list[str]) -> list[str]:
    """The ids of the rows whose answer passes."""

    def passes(row: dict[str, Any], answer: str) -> bool:
        function, tests = row["entry_point"], row["test"]
        return score_code(sandbox, answer, row["prompt"], function, tests, Limits()).correct

    with ThreadPoolExecutor(3) as pool:
        right = list(pool.map(passes, rows, answers))
    return [row["task_id"] for row, good in zip(rows, right, strict=True) if good]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_solutions_pass_in_every_form(sandbox: Sandbox, form: Callable[[str, str], str]) -> None:
    rows = real_rows("humaneval")
    answers = [form(row["prompt"], row["canonical_solution"]) for row in rows]
    passed = passing(sandbox, rows, answers)
    assert [row["task_id"] for row in rows if row["task_id"] not in passed] == []
    assert len(passed) == 164


@pytest.mark.slow
@pytest.mark.parametrize("body", ["    pass\n", "    return None\n", "    return 'x' * 3\n"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_wrong_bodies_fail_in_every_form(
    sandbox: Sandbox, form: Callable[[str, str], str], body: str
) -> None:
    rows = real_rows("humaneval")[::8]
    assert passing(sandbox, rows, [form(row["prompt"], body) for row in rows]) == []
