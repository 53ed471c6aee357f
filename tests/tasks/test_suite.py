"""Suites from folders of benchmark rows. The rows here are made up."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks import SUITES, Graders, Suite, Task, load_suite

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


def test_without_rows_the_error_says_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVCOMM_DATA", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for folder in (None, tmp_path):
        with pytest.raises(UsageError, match=r"pass --data DIR .*pip install 'kvcomm\[hf\]'"):
            load_suite("gsm8k", folder)


def test_rows_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub returns has dictionaries of lists where the authors' files have pairs."""
    monkeypatch.delenv("KVCOMM_DATA", raising=False)
    asked: list[object] = []
    row = {
        "id": "q1",
        "question": "Which came first?",
        "answer": "the egg",
        "supporting_facts": {"title": ["t7"], "sent_id": [0]},
        "context": {"title": [f"t{i}" for i in range(8)], "sentences": [["x.", " y."]] * 8},
    }

    def load_dataset(*names: object, split: str) -> list[dict[str, object]]:
        asked.extend((*names, split))
        return [row]

    fake = types.ModuleType("datasets")
    fake.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    _, (task,) = load_suite("hotpotqa")
    assert asked == ["hotpotqa/hotpot_qa", "distractor", "validation"]
    assert task.passages[-1] == "t7\nx. y."
    assert task.id == "q1"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is no JSON object but list"),
        ({"question": "x"}, "line 1 is no row of gsm8k: it lacks 'answer'"),
        ({"question": " ", "answer": "#### 1"}, "its text is empty"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_suite("gsm8k", write(tmp_path, "gsm8k", row))


def test_unknown_suites(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suite 'x' is unknown: choose one of math500, aime2024"):
        load_suite("x", tmp_path)


MUSIQUE = {
    "id": "2hop_1",
    "question": "Who?",
    "answer": "Ada",
    "answer_aliases": ["Ada L."],
    "paragraphs": [
        {"title": f"T{i}", "paragraph_text": f"Text  {i}.\n\nMore.", "is_supporting": i in (2, 9)}
        for i in range(10)
    ],
}
CODE = {
    "task_id": "X/0",
    "prompt": "def f(x):\n    pass\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}
CHOICES = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2}
PROBLEM = {"problem": "$1 + 1$?", "answer": "2", "unique_id": "test/a/1.json"}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("math500", PROBLEM, Task("test/a/1.json", "$1 + 1$?", "2")),
        ("aime2024", {"problem": "p", "answer": "025", "id": 60}, Task("60", "p", "025")),
        ("humaneval", CODE, Task("X/0", "def f(x):\n    pass\n", "    return x\n")),
        ("mmlu", CHOICES, Task("mmlu-1", "Which?\nA. w\nB. x\nC. y\nD. z", "C")),
        ("gsm8k", {"question": "q", "answer": "so\n#### 1,234"}, Task("gsm8k-1", "q", "1234")),
    ],
)
def test_rows_of_every_kind(tmp_path: Path, name: str, row: object, expected: Task) -> None:
    _, (task,) = load_suite(name, write(tmp_path, name, row))
    assert task == expected
    assert task.row == row


def test_musique_has_all_paragraphs_to_search_in(tmp_path: Path) -> None:
    _, (task,) = load_suite("musique", write(tmp_path, "musique", MUSIQUE))
    assert [text.split("\n")[0] for text in task.passages] == ["T0", "T1", "T2", "T3", "T4", "T9"]
    assert len(task.corpus) == 10
    assert task.corpus[0] == "T0\nText 0. More."  # one paragraph: the corpus is cut at blank lines
    assert task.accepted == ("Ada L.",)
    assert task.inputs_for(("task", "corpus"))["corpus"].count("\n\n") == 9


def test_a_task_that_lacks_an_input_says_what_it_has() -> None:
    with pytest.raises(UsageError, match="asks for the input `corpus`, but task a brings task"):
        Task("a", "x", "y").inputs_for(("task", "corpus"))


def test_the_form_of_the_answer_is_asked_behind_the_task() -> None:
    assert Task("a", "x", "y").inputs_for(("task",), "Be short.") == {"task": "x\n\nBe short."}


def test_a_row_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2: id 'test/a/1.json' is already taken"):
        load_suite("math500", write(tmp_path, "math500", PROBLEM, PROBLEM))


def test_a_suite_of_a_users_python_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from kvcomm.tasks import Suite, Task\n"
        "from kvcomm.tasks.graders import by_words\n"
        "from kvcomm.tasks.teams import math_team\n"
        "def read(row, name):\n"
        "    return Task(name, row['q'], row['a'])\n"
        "suite = Suite('mine', 'about it', read, by_words, math_team)\n"
    )
    suite, (task,) = load_suite(str(path), write(tmp_path, "mine", {"q": "1?", "a": "one"}))
    assert (suite.name, task.input, task.target) == ("mine", "1?", "one")


@pytest.mark.parametrize("suite", [s for s in SUITES.values() if s.shipped], ids=lambda s: s.name)
def test_what_is_shipped_has_rows_enough(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVCOMM_DATA", raising=False)
    assert len(suite.tasks()) >= 20


def test_own_lines_are_scored_by_value_or_by_words(tmp_path: Path) -> None:
    rows = [{"input": "1/2?", "target": "0.5"}, {"input": "Who?", "target": "Flight 370"}]
    suite, tasks = load_suite(str(write(tmp_path, "own", *rows) / "own.jsonl"))
    with Graders() as graders:
        found = [
            suite.grade(task, text, graders).correct
            for task, text in zip(tasks, ("Answer: 1/2", "Answer: the flight 370."), strict=True)
        ]
        assert found == [True, True]
        assert not suite.grade(tasks[0], "Answer: 1/3", graders).correct


def test_own_lines_with_a_corpus_get_a_team_with_a_retriever(tmp_path: Path) -> None:
    row = {"input": "Who?", "target": "Ada", "corpus": ["Ada did it.", "Bob slept."]}
    suite, (task,) = load_suite(str(write(tmp_path, "own", row) / "own.jsonl"))
    assert task.corpus == ("Ada did it.", "Bob slept.")
    with Graders() as graders:
        assert "retriever" in suite.team(graders).nodes
