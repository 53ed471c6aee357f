"""Tasks of a user's JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks import Task, load_suite

GOOD = '{"id": "a", "input": "1 + 1?", "target": "2", "level": 3}'


def load(path: Path) -> list[Task]:
    return load_suite(str(path))[1]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_blank_lines_and_other_fields_are_ignored(tmp_path: Path) -> None:
    assert load(write(tmp_path, f"\n{GOOD}\n\n")) == [Task("a", "1 + 1?", "2")]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    line = '{"id": "a", "input": "one\u2028two", "target": "2"}'
    assert load(write(tmp_path, line))[0].input == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\nnonsense", "line 2 is not JSON"),
        ("[1, 2]", "line 1 is no JSON object but list"),
        ('{"id": "a", "input": "x"}', "line 1 is no row of tasks: it lacks 'target'"),
        ('{"id": "a", "input": " ", "target": "2"}', "'input' must be a text"),
        ('{"id": "a", "input": "x", "target": 2}', "'target' must be a text"),
        (f"{GOOD}\n{GOOD}", "line 2: id 'a' is already taken"),
        ("", "has no rows that can be used"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(write(tmp_path, text))


def test_an_id_is_the_lines_number_where_there_is_none(tmp_path: Path) -> None:
    (task,) = load(write(tmp_path, '\n{"input": "x", "target": "2"}\n'))
    assert task.id == "tasks-2"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read tasks from .*: No such file"):
        load(tmp_path / "none.jsonl")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(path)
