"""code-mini: the given solutions pass their tests and examples, an empty one does not."""

from __future__ import annotations

import ast
import doctest
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from kvcomm.tasks import DATA, SUITES
from kvcomm.tasks.scoring.code import examples

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "code-mini.jsonl").read_text(encoding="utf-8").splitlines()
]
IDS = [row["task_id"] for row in ROWS]
NOTHING = "    return None\n"


def namespace(row: dict[str, Any], body: str) -> dict[str, Any]:
    """What is defined by the row's function with this body, and by its tests."""
    found: dict[str, Any] = {}
    exec(f"{row['prompt']}{body}\n\n{row['test']}", found)
    return found


def checked(row: dict[str, Any], body: str) -> None:
    found = namespace(row, body)
    check: Callable[[Any], None] = found["check"]
    check(found[row["entry_point"]])


def test_54_functions_of_four_levels_easy_and_hard_ones_in_turn() -> None:
    assert sorted(IDS) == sorted(f"mini/{n}" for n in range(54))
    assert Counter(row["level"] for row in ROWS) == {0: 30, 1: 8, 2: 8, 3: 8}
    assert [row["level"] == 0 for row in ROWS[:48]] == [True, False] * 24
    assert len({row["entry_point"] for row in ROWS}) == 54
    fields = {"task_id", "prompt", "entry_point", "canonical_solution", "test", "level"}
    assert all(set(row) == fields for row in ROWS)
    assert [task.id for task in SUITES["code-mini"].tasks(DATA)] == IDS


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_solution_passes_its_tests(row: dict[str, Any]) -> None:
    checked(row, row["canonical_solution"])


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_function_that_returns_nothing_fails(row: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        checked(row, NOTHING)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_examples_of_the_prompt_hold(row: dict[str, Any]) -> None:
    found = namespace(row, row["canonical_solution"])
    docstring = found[row["entry_point"]].__doc__
    test = doctest.DocTestParser().get_doctest(docstring, found, row["task_id"], None, None)
    assert test.examples
    ran = doctest.DocTestRunner(verbose=False).run(test)
    assert ran.failed == 0
    assert len(examples(row["prompt"], row["entry_point"])) == ran.attempted


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_prompt_ends_in_a_docstring_and_the_tests_go_beyond_it(row: dict[str, Any]) -> None:
    *_, function = ast.parse(row["prompt"] + NOTHING).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == row["entry_point"]
    assert len(function.body) == 2
    assert ast.get_docstring(function)
    shown = len(examples(row["prompt"], row["entry_point"]))
    assert row["test"].count("assert ") >= shown + 3
