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


def reasons(sandbox: Sandbox, rows: list[dict[str, Any]], answers: list[str]) -> dict[str, str]:
    """How the answer to each row ended, by the row's id."""

    def reason(row: dict[str, Any], answer: str) -> str:
        function, tests = row["entry_point"], row["test"]
        return score_code(sandbox, answer, row["prompt"], function, tests, Limits()).reason

    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(reason, rows, answers))
    return {row["task_id"]: why for row, why in zip(rows, said, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_solutions_pass_in_every_form(sandbox: Sandbox, form: Callable[[str, str], str]) -> None:
    rows = real_rows("humaneval")
    answers = [form(row["prompt"], row["canonical_solution"]) for row in rows]
    said = reasons(sandbox, rows, answers)
    assert {row: why for row, why in said.items() if why != "passed"} == {}
    assert len(said) == 164


@pytest.mark.slow
@pytest.mark.parametrize("body", ["    pass\n", "    return None\n", "    return 'x' * 3\n"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_wrong_bodies_fail_in_every_form(
    sandbox: Sandbox, form: Callable[[str, str], str], body: str
) -> None:
    rows = real_rows("humaneval")[::8]
    said = reasons(sandbox, rows, [form(row["prompt"], body) for row in rows])
    assert [row for row, why in said.items() if why == "passed"] == []
