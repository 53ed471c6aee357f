"""code-mini: the given solutions pass their tests and examples, an empty one does not."""

import ast
import doctest
from collections import Counter
from typing import Any

import pytest

from kvcomm.tasks import DATA, SUITES
from kvcomm.tasks.scoring.code import examples
from tests.tasks.real import read_lines

ROWS: list[dict[str, Any]] = read_lines(DATA / "code-mini.jsonl")
IDS = [row["task_id"] for row in ROWS]
NOTHING = "    return None\n"


def checked(row: dict[str, Any], body: str) -> dict[str, Any]:
    """What is defined by the row's function with this body, and by its tests, which it passes."""
    found: dict[str, Any] = {}
    exec(f"{row['prompt']}{body}\n\n{row['test']}", found)
    found["check"](found[row["entry_point"]])
    return found


def test_54_functions_of_four_levels_easy_and_hard_ones_in_turn() -> None:
    assert sorted(IDS) == sorted(f"mini/{n}" for n in range(54))
    assert Counter(row["level"] for row in ROWS) == {0: 30, 1: 8, 2: 8, 3: 8}
    assert [row["level"] == 0 for row in ROWS[:48]] == [True, False] * 24
    assert len({row["entry_point"] for row in ROWS}) == 54
    fields = {"task_id", "prompt", "entry_point", "canonical_solution", "test", "level"}
    assert all(set(row) == fields for row in ROWS)
    assert [task.id for task in SUITES["code-mini"].tasks(DATA)] == IDS


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_solution_passes_its_tests_and_examples_and_nothing_fails(row: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        checked(row, NOTHING)
    found = checked(row, row["canonical_solution"])
    docstring = found[row["entry_point"]].__doc__
    test = doctest.DocTestParser().get_doctest(docstring, found, row["task_id"], None, None)
    ran = doctest.DocTestRunner(verbose=False).run(test)
    assert ran.failed == 0
    assert len(examples(row["prompt"], row["entry_point"])) == ran.attempted > 0


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_prompt_ends_in_a_docstring_and_the_tests_go_beyond_it(row: dict[str, Any]) -> None:
    *_, function = ast.parse(row["prompt"] + NOTHING).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == row["entry_point"]
    assert len(function.body) == 2
    assert ast.get_docstring(function)
    shown = len(examples(row["prompt"], row["entry_point"]))
    assert row["test"].count("assert ") >= shown + 3
