"""The suites: a table of those that come with kvcomm, how rows become tasks, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.own_file import Wanted, load_own
from kvcomm.tasks.graders import LETTERS, Graders, by_letter, by_math, by_tests, by_words
from kvcomm.tasks.rows import Hub, as_text, as_texts, list_of, read_rows, row_id, text_of, texts_of
from kvcomm.tasks.scoring import Score
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import answer_team, code_team, math_team, rag_team

# How many passages of a question are kept for graphs that read without a retriever.
PASSAGES = 6
Row = Mapping[str, Any]
SUITE = Wanted(Suite, "suite", 'suite = Suite("mine", "about it", read, grade, team)')


def read_problem(row: Row, name: str) -> Task:
    """`problem`, `answer`, and an id of its own where there is one."""
    return Task(row_id(row, "unique_id", "id", name=name), row["problem"], text_of(row, "answer"))


def read_gsm8k(row: Row, name: str) -> Task:
    """`question`, and what stands behind `####` in `answer`."""
    target = text_of(row, "answer").rpartition("####")[2].strip()
    return Task(name, row["question"], target.replace(",", ""))


def read_function(row: Row, name: str) -> Task:
    """`prompt`, the start of the function `entry_point`; `test` is run on it."""
    for field in ("entry_point", "test"):
        if not isinstance(row[field], str):
            raise ValueError(f"its {field} is no text")
    solution = text_of(row, "canonical_solution")
    return Task(row_id(row, "task_id", name=name), row["prompt"], solution)


def read_mmlu(row: Row, name: str) -> Task:
    """`question` and `choices` as the text; `answer` is the index of the right one."""
    choices = texts_of(row, "choices")
    if len(choices) != len(LETTERS):
        raise ValueError(f"it has {len(choices)} choices, not {len(LETTERS)}")
    listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True)]
    answer = text_of(row, "answer")
    if answer not in ("0", "1", "2", "3"):
        raise ValueError(f"'answer' must be 0 to 3, not {answer!r:.40}")
    return Task(name, "\n".join([text_of(row, "question"), *listed]), LETTERS[int(answer)])


def read_hotpotqa(row: Row, name: str) -> Task:
    """The question and its passages.

    `context` and `supporting_facts` are lists of pairs, as in the files of the authors, or
    dictionaries of lists, as on the hub.
    """

    def pairs(field: str, first: str, second: str) -> list[tuple[str, Any]]:
        value = list_of(row, field)
        if isinstance(value, Mapping):
            value = zip(value[first], value[second], strict=True)
        return [(as_text(left, first), right) for left, right in value]

    support = {title for title, _ in pairs("supporting_facts", "title", "sent_id")}
    passages = [
        (title in support, title, "".join(as_texts(sentences, "sentences")))
        for title, sentences in pairs("context", "title", "sentences")
    ]
    return _over_passages(row, row_id(row, "_id", "id", name=name), passages)


def read_musique(row: Row, name: str) -> Task:
    """The question and its passages, `paragraphs`."""
    passages = [
        (bool(item["is_supporting"]), text_of(item, "title"), text_of(item, "paragraph_text"))
        for item in list_of(row, "paragraphs")
    ]
    return _over_passages(row, row_id(row, "id", name=name), passages)


def _over_passages(row: Row, name: str, passages: Sequence[tuple[bool, str, str]]) -> Task:
    """A task with all passages to search in, and six of them to read in their order.

    Those that support the answer are among the six. A passage is one paragraph, its title in the
    first line.
    """
    texts = tuple(f"{title}\n" + " ".join(text.split()) for _, title, text in passages)
    first = sorted(range(len(texts)), key=lambda place: not passages[place][0])[:PASSAGES]
    kept = tuple(texts[place] for place in sorted(first))
    accepted = texts_of(row, "answer_aliases")
    gold = tuple(text for text, (support, *_) in zip(texts, passages, strict=True) if support)
    return Task(name, row["question"], text_of(row, "answer"), kept, texts, accepted, gold)


def read_own(row: Row, name: str) -> Task:
    """`input` and `target`; if they are there `id`, and `accepted` and `corpus`, lists of texts."""
    for field in ("input", "target"):
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field!r} must be a text that is not empty")
    accepted, corpus = (texts_of(row, field) for field in ("accepted", "corpus"))
    id_ = row_id(row, "id", name=name)
    return Task(id_, row["input"], row["target"], corpus=corpus, accepted=accepted)


def by_target(task: Task, answer: str, graders: Graders) -> Score:
    """The same words as the target; a target that is a number or LaTeX, the same value."""
    if any(sign.isdigit() or sign == "\\" for sign in task.target):
        score = graders.math.score(answer, task.target)
        if score.correct:
            return score
    return by_words(task, answer, graders)


BOXED = "Put the final answer in \\boxed{}."
FENCED = "Answer with the complete function in one ```python block."
SHORT = "End with: Answer: the answer in a few words, or yes or no."
NUMBER = "End with the answer as a number: #### NUMBER."
# Kinds of suites; a row of the table has a name and rows of its own.
MATH = Suite("", "", read_problem, by_math, math_team, BOXED)
GSM8K = replace(MATH, read=read_gsm8k, ask=NUMBER)
MMLU = Suite("", "", read_mmlu, by_letter, answer_team, "End with: Answer: LETTER.")
CODE = Suite("", "", read_function, by_tests, code_team, FENCED)
HOPS = Suite("", "", read_hotpotqa, by_words, rag_team, SHORT, PASSAGES)
MUSIQUE = replace(HOPS, read=read_musique)
OWN = Suite("", "", read_own, by_target, answer_team, "End with: Answer: YOUR ANSWER.")
SHIPPED = "half of them easy, shipped with kvcomm"
_TABLE: tuple[tuple[str, Suite, str, Hub | None], ...] = (
    ("math500", MATH, "500 competition problems, five levels", Hub("HuggingFaceH4/MATH-500")),
    (
        "aime2024",
        MATH,
        "30 problems of AIME I and II 2024",
        Hub("HuggingFaceH4/aime_2024", "train"),
    ),
    ("gsm8k", GSM8K, "1,319 word problems of grade school", Hub("openai/gsm8k", config="main")),
    ("humaneval", CODE, "164 Python functions with tests", Hub("openai/openai_humaneval")),
    ("mmlu", MMLU, "questions of 57 subjects, four choices each", Hub("cais/mmlu", config="all")),
    (
        "hotpotqa",
        HOPS,
        "questions over two of ten passages",
        Hub("hotpotqa/hotpot_qa", "validation", "distractor"),
    ),
    (
        "musique",
        MUSIQUE,
        "questions of two to four hops over twenty passages",
        Hub("dgslibisey/MuSiQue", "validation"),
    ),
    (
        "2wiki",
        HOPS,
        "questions over two to four of ten passages",
        Hub("framolfese/2WikiMultihopQA", "validation"),
    ),
    ("math-mini", MATH, f"60 problems, {SHIPPED}", None),
    ("code-mini", CODE, f"54 Python functions, {SHIPPED}", None),
    ("rag-mini", HOPS, f"54 questions, {SHIPPED}", None),
)
SUITES: dict[str, Suite] = {
    name: replace(kind, name=name, about=about, hub=hub, shipped=hub is None)
    for name, kind, about, hub in _TABLE
}


def suite_of_lines(path: Path) -> Suite:
    """The suite of a JSONL file. Tasks with a `corpus` are read by a team with a retriever."""
    searched = any(row.value.get("corpus") for row in read_rows(path))
    team = rag_team if searched else answer_team
    return replace(OWN, name=path.stem, about=f"tasks of {path}", team=team, path=path)


def find_suite(name: str) -> Suite:
    """The suite called `name`, or that of a file: FILE.py[:NAME], FILE.jsonl.

    Raises `UsageError` for anything else.
    """
    if name in SUITES:
        return SUITES[name]
    if name.endswith(".jsonl"):
        return suite_of_lines(Path(name))
    if ".py" in name:
        return load_own(name, SUITE)
    raise UsageError(
        f"suite {name!r} is unknown: choose one of {', '.join(SUITES)}, a FILE.jsonl with `input` "
        "and `target`, or FILE.py[:NAME]"
    )


def load_suite(name: str, folder: Path | None = None) -> tuple[Suite, list[Task]]:
    """A suite and its tasks. Raises `UsageError` where there are none."""
    suite = find_suite(name)
    return suite, suite.tasks(folder)
