"""Suites from folders of benchmark rows. The rows here are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks import SUITES, load_suite

GSM = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def hotpot(passages: int = 8, support: tuple[int, ...] = (1, 7)) -> dict[str, object]:
    return {
        "_id": "q1",
        "question": "Which came first?",
        "answer": "the egg",
        "supporting_facts": [[f"title {i}", 0] for i in support],
        "context": [
            [f"title {i}", [f"Sentence {i}a.", f" Sentence {i}b."]] for i in range(passages)
        ],
    }


def write(folder: Path, name: str, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_gsm8k_rows(tmp_path: Path) -> None:
    suite, tasks = load_suite("gsm8k", write(tmp_path, "gsm8k", GSM, ""))
    assert suite is SUITES["gsm8k"]
    assert [(task.input, task.target, task.passages) for task in tasks] == [
        ("Two and two?", "4", ())
    ]
    assert tasks[0].inputs == {"task": "Two and two?"}


def test_hotpotqa_keeps_six_passages_in_order_with_the_supporting_ones(tmp_path: Path) -> None:
    suite, (task,) = load_suite("hotpotqa", write(tmp_path, "hotpotqa", hotpot()))
    titles = [text.split("\n")[0] for text in task.passages]
    assert titles == [f"title {i}" for i in (0, 1, 2, 3, 4, 7)]
    assert task.passages[0] == "title 0\nSentence 0a. Sentence 0b."
    assert suite.inputs == tuple(f"passage{i}" for i in range(1, 7))
    assert set(task.inputs) == {"task", *suite.inputs}
    assert task.id == "q1"


def test_rows_with_too_few_passages_are_left_out(tmp_path: Path) -> None:
    _, tasks = load_suite("hotpotqa", write(tmp_path, "hotpotqa", hotpot(5), hotpot(6)))
    assert len(tasks) == 1


def test_the_folder_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCOMM_DATA", str(write(tmp_path, "gsm8k", GSM)))
    assert len(load_suite("gsm8k")[1]) == 1
    monkeypatch.delenv("KVCOMM_DATA")
    with pytest.raises(UsageError, match="pass --data DIR or set KVCOMM_DATA"):
        load_suite("gsm8k")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 is no row of gsm8k"),
        ("[1]", "line 1 is no row of gsm8k"),
        ({"question": "x"}, "it lacks 'answer'"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_suite("gsm8k", write(tmp_path, "gsm8k", row))


def test_unknown_suites_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suite 'x' is unknown: choose one of gsm8k, hotpotqa"):
        load_suite("x", tmp_path)
    with pytest.raises(UsageError, match=r"cannot read .*gsm8k.jsonl: No such file"):
        load_suite("gsm8k", tmp_path)
