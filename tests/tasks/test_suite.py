"""Suites from folders of benchmark rows. The rows here are made up."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import math
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
        with pytest.raises(UsageError, match=r'pass --data DIR .*pip install "kvcomm\[hf\]"'):
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
    with pytest.raises(UsageError, match="the input `corpus`, but task a brings question, task"):
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


MARK = "\ufeff"
OWN = {"input": "1 + 1?", "target": "2"}
LINES = [json.dumps(OWN), json.dumps({"input": "Who wrote\u2028it?", "target": "Ada"})]


@pytest.mark.parametrize(
    "text",
    {
        "mark": MARK + "\n".join(LINES),
        "mark on every part": f"{MARK}{LINES[0]}\n{MARK}{LINES[1]}\n",
        "mark on a line of its own": f"{MARK}\n{LINES[0]}\n{LINES[1]}\n{MARK}",
        "Windows": MARK + "\r\n".join([*LINES, "", ""]),
        "old Mac": "\r".join(LINES),
        "blank lines": f"\n \n{LINES[0]}\n\t\n{LINES[1]}\n\n\n",
        "a separator of lines inside": "\n".join(LINES).replace("\\u2028", "\u2028"),
        "mark and blanks": f" {MARK} {LINES[0]} {MARK}\n\t{MARK}{LINES[1]}{MARK} ",
    }.values(),
)
def test_lines_as_every_tool_writes_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(text.encode())
    _, tasks = load_suite(str(path))
    assert [(task.input, task.target) for task in tasks] == [
        ("1 + 1?", "2"),
        ("Who wrote\u2028it?", "Ada"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_in_utf16_that_says_so(tmp_path: Path, encoding: str, end: str) -> None:
    mark = "" if encoding == "utf-16" else MARK
    path = tmp_path / "own.jsonl"
    path.write_bytes((mark + end.join([LINES[0], "", LINES[1]])).encode(encoding))
    assert [(task.id, task.target) for task in load_suite(str(path))[1]] == [
        ("own-1", "2"),
        ("own-3", "Ada"),
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-32"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes('{"input": "é", "target": "x"}'.encode(encoding))
    with pytest.raises(
        UsageError, match=r"own\.jsonl(: it is not UTF-8 text|, line 1 is not JSON)"
    ):
        load_suite(str(path))


def test_the_line_of_a_bad_row_is_counted_with_the_mark(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(f"{MARK}{LINES[0]}\r\n\r\n{{\r\n".encode())
    with pytest.raises(UsageError, match="line 3 is not JSON"):
        load_suite(str(tmp_path / "own.jsonl"))


def test_a_users_python_file_with_a_mark(tmp_path: Path) -> None:
    write(tmp_path, "mine", OWN)
    (tmp_path / "mine.py").write_bytes(
        f"{MARK}from pathlib import Path\r\n"
        "from kvcomm.tasks.suites import suite_of_lines\r\n"
        "suite = suite_of_lines(Path(__file__).with_suffix('.jsonl'))\r\n".encode()
    )
    assert load_suite(str(tmp_path / "mine.py"))[1][0].target == "2"


ROWS_WITH_IDS = [
    ("own", "id", OWN),
    ("math500", "unique_id", PROBLEM),
    ("math500", "id", {"problem": "p", "answer": "1"}),
    ("aime2024", "id", {"problem": "p", "answer": "025"}),
    ("math-mini", "id", {"problem": "p", "answer": "1"}),
    ("humaneval", "task_id", CODE),
    ("code-mini", "task_id", CODE),
    ("hotpotqa", "_id", hotpot()),
    ("2wiki", "id", {k: v for k, v in hotpot().items() if k != "_id"}),
    ("rag-mini", "_id", hotpot()),
    ("musique", "id", MUSIQUE),
]


def rows_of(folder: Path, name: str, *rows: object) -> list[Task]:
    write(folder, name, *rows)
    return load_suite(str(folder / "own.jsonl") if name == "own" else name, folder)[1]


@pytest.mark.parametrize("missing", [None, "", "  ", math.nan])
@pytest.mark.parametrize(("name", "field", "row"), ROWS_WITH_IDS)
def test_an_id_that_is_null_or_blank_is_as_good_as_none(
    tmp_path: Path, name: str, field: str, row: dict[str, object], missing: object
) -> None:
    without = {key: value for key, value in row.items() if key != field}
    absent = rows_of(tmp_path, name, without, without)
    given = rows_of(tmp_path, name, {**row, field: missing}, {**row, field: missing})
    assert [task.id for task in given] == [task.id for task in absent]
    assert [task.id for task in given] == [f"{name}-1", f"{name}-2"]


@pytest.mark.parametrize(("name", "field", "row"), ROWS_WITH_IDS)
def test_a_number_is_an_id(tmp_path: Path, name: str, field: str, row: dict[str, object]) -> None:
    # A column of a table that has gaps holds 60.0 for 60.
    given = [rows_of(tmp_path, name, {**row, field: value})[0].id for value in (0, 60, 60.0)]
    assert given == ["0", "60", "60"]
    with pytest.raises(UsageError, match=r"line 1 is no row of .*'id' must be a text"):
        rows_of(tmp_path, name, {**row, field: ["x"]})


def test_the_first_id_that_is_given_counts(tmp_path: Path) -> None:
    (task,) = rows_of(tmp_path, "math500", {**PROBLEM, "unique_id": None, "id": 7})
    assert task.id == "7"


def test_a_null_id_that_a_users_suite_passes_on(tmp_path: Path) -> None:
    write(tmp_path, "mine", {"id": None, "q": "1?"}, {"id": 5, "q": "2?"})
    suite = Suite(
        "mine",
        "about it",
        lambda row, name: Task(row.get("id", name), row["q"], "x"),
        SUITES["gsm8k"].grade,
        SUITES["gsm8k"].team,
    )
    assert [task.id for task in suite.tasks(tmp_path)] == ["mine-1", "5"]


def without_a_text() -> list[tuple[str, str, object]]:
    rows = {name: row for name, _, row in ROWS_WITH_IDS if name not in ("math-mini", "rag-mini")}
    rows |= {"gsm8k": GSM, "mmlu": CHOICES}
    names = ("input", "target", "question", "problem", "prompt", "answer", "choices", "test")
    names += ("entry_point", "canonical_solution", "context", "paragraphs", "supporting_facts")
    cases = [(name, field, row) for name, row in rows.items() for field in names if field in row]
    deep = [
        ("mmlu", "choices", ["w", None, "y", "z"]),
        ("hotpotqa", "context", [[None, ["x."]]] * 6),
        ("hotpotqa", "context", [["t", ["x.", None]]] * 6),
        ("hotpotqa", "answer_aliases", ["egg", None]),
        ("musique", "paragraphs", [{**MUSIQUE["paragraphs"][0], "title": None}] * 6),
        ("musique", "paragraphs", [{**MUSIQUE["paragraphs"][0], "paragraph_text": None}] * 6),
        ("own", "accepted", [None]),
        ("own", "corpus", ["x", None]),
    ]
    found = [(name, field, {**row, field: None}) for name, field, row in cases]
    return found + [(name, field, {**rows[name], field: value}) for name, field, value in deep]


@pytest.mark.parametrize(("name", "field", "row"), without_a_text())
def test_null_where_a_text_is_needed_is_an_error(
    tmp_path: Path, name: str, field: str, row: object
) -> None:
    with pytest.raises(UsageError, match=f"line 1 is no row of {name}: "):
        rows_of(tmp_path, name, row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("own", {**OWN, "accepted": None, "corpus": None, "id": None}),
        ("hotpotqa", {**hotpot(), "answer_aliases": None}),
        ("musique", {**MUSIQUE, "answer_aliases": None}),
    ],
)
def test_lists_that_may_be_missing_may_be_null(tmp_path: Path, name: str, row: object) -> None:
    (task,) = rows_of(tmp_path, name, row)
    assert task.accepted == ()


@pytest.mark.parametrize("answer", [-1, 4, 1.5, "B", "", True])
def test_a_choice_that_there_is_not(tmp_path: Path, answer: object) -> None:
    with pytest.raises(UsageError, match=r"line 1 is no row of mmlu: 'answer' must be "):
        rows_of(tmp_path, "mmlu", {**CHOICES, "answer": answer})


@pytest.mark.parametrize(
    ("name", "field", "row"),
    [
        ("hotpotqa", "context", hotpot()),
        ("hotpotqa", "supporting_facts", hotpot()),
        ("musique", "paragraphs", MUSIQUE),
    ],
)
def test_a_list_that_is_none_is_named(
    tmp_path: Path, name: str, field: str, row: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=f"'{field}' must be a list, not null"):
        rows_of(tmp_path, name, {**row, field: None})


def test_numbers_are_texts(tmp_path: Path) -> None:
    (task,) = rows_of(tmp_path, "musique", {**MUSIQUE, "answer": 1969, "answer_aliases": [69.0]})
    assert (task.target, task.accepted) == ("1969", ("69",))
