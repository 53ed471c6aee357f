"""Rows of strangers: an error names the file, the line and what is wrong with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.tasks import SUITES, load_suite
from kvcomm.tasks.rows import read_rows
from tests.robust.fuzzing import fuzzed

GOOD = '{"input": "1 + 1?", "target": "2"}'
BAD = {
    "not JSON": "{",
    "no object": "[1]",
    "binary": "\x00\x01",
    "not a number": '{"input": "x", "target": NaN}',
    "infinite": '{"input": "x", "target": -Infinity}',
    "huge integer": '{"input": "x", "target": ' + "9" * 5000 + "}",
    "deeply nested": '{"input": ' + "[" * 100_000,
    "half a character": '{"input": "\\ud800", "target": "x"}',
    "no target": '{"input": "x"}',
    "wrong input": '{"input": 5, "target": "x"}',
    "wrong target": '{"input": "x", "target": ["x"]}',
    "empty": '{"input": " ", "target": "x"}',
    "wrong corpus": '{"input": "x", "target": "x", "corpus": "one text"}',
    "wrong passages": '{"input": "x", "target": "x", "corpus": [1, {}]}',
    "wrong accepted": '{"input": "x", "target": "x", "accepted": {"a": 1}}',
    "long": '{"input": "' + "x" * 40_000_000,
}
SUITES_OF_ROWS = [name for name, suite in SUITES.items() if not suite.shipped]
# Those that some suite knows.
FIELDS = (
    *("question", "problem", "prompt", "answer", "choices", "id", "context", "supporting_facts"),
    *("paragraphs", "answer_aliases", "test", "entry_point", "canonical_solution", "title"),
    *("sentences", "paragraph_text", "is_supporting"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), below),
    max_leaves=8,
)


@pytest.mark.parametrize("what", BAD)
def test_a_row_that_is_none_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{GOOD}\n\n{BAD[what]}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        load_suite(str(path), None)
    assert str(raised.value).startswith(f"{path}, line 3 is no")
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("kind", ["missing", "fifo", "endless", "folder", "not UTF-8"])
def test_what_is_no_file_of_text_is_not_read(cli: Callable, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xff")
    ended = cli("eval", "mine.jsonl")
    assert ended.code == 2
    assert "cannot read tasks from mine.jsonl" in ended.err


def complaint(read: Callable[[], object]) -> str:
    """What is said of rows that are none; nothing of others."""
    try:
        read()
    except UsageError as error:
        return str(error)
    return ""


def check_row(tmp_path: Path, name: str, row: object) -> None:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    said = complaint(lambda: load_suite(name, tmp_path))
    assert not said or "line 1 is no" in said or "no rows that can be used" in said


test_any_row_is_a_task_or_an_error, test_any_row_at_length = map(
    pytest.mark.parametrize("name", SUITES_OF_ROWS),
    fuzzed(
        check_row,
        few=40,
        many=1500,
        row=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8),
    ),
)


def check_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    said = complaint(lambda: read_rows(tmp_path / "x.jsonl"))
    assert not said or str(tmp_path) in said


test_any_bytes_are_rows_or_an_error, test_any_bytes_at_length = fuzzed(
    check_bytes, few=200, data=st.binary(max_size=200)
)
