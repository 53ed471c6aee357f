"""The suites that come with kvcomm: how their rows become tasks, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.tasks.graders import LETTERS, by_letter, by_math, by_tests, by_words
from kvcomm.tasks.own import suite_file, suite_of_lines
from kvcomm.tasks.rows import Hub, as_text, as_texts, list_of, row_id, text_of, texts_of
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.tasks.teams import answer_team, code_team, math_team, rag_team

# How many passages of a question are kept for graphs that read without a retriever.
PASSAGES = 6
BOXED = "Put the final answer in \\boxed{}."
FENCED = "Answer with the complete function in one ```python block."
SHORT = "End with: Answer: the answer in a few words, or yes or no."


def read_problem(row: Mapping[str, Any], name: str) -> Task:
    """`problem`, `answer`, and an id of its own where there is one."""
    return Task(row_id(row, "unique_id", "id", name=name), row["problem"], text_of(row, "answer"))


def read_gsm8k(row: Mapping[str, Any], name: str) -> Task:
    """`question`, and what stands behind `####` in `answer`."""
    target = text_of(row, "answer").rpartition("####")[2].strip()
    return Task(name, row["question"], target.replace(",", ""))


def read_function(row: Mapping[str, Any], name: str) -> Task:
    """`prompt`, the start of the function `entry_point`; `test` is run on it."""
    for field in ("entry_point", "test"):
        if not isinstance(row[field], str):
            raise ValueError(f"its {field} is no text")
    solution = text_of(row, "canonical_solution")
    return Task(row_id(row, "task_id", name=name), row["prompt"], solution)


def read_mmlu(row: Mapping[str, Any], name: str) -> Task:
    """`question` and `choices` as the text; `answer` is the index of the right one."""
    choices = texts_of(row, "choices")
    if len(choices) != len(LETTERS):
        raise ValueError(f"it has {len(choices)} choices, not {len(LETTERS)}")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))
    asked = f"{text_of(row, 'question')}\n{listed}"
    answer = text_of(row, "answer")
    if answer not in ("0", "1", "2", "3"):
        raise ValueError(f"'answer' must be 0 to 3, not {answer!r:.40}")
    return Task(name, asked, LETTERS[int(answer)])


def read_hotpotqa(row: Mapping[str, Any], name: str) -> Task:
    """The question and its passages.

    `context` and `supporting_facts` are lists of pairs, as in the files of the authors, or
    dictionaries of lists, as on the hub.
    """
    facts = _pairs(list_of(row, "supporting_facts"), "title", "sent_id")
    support = {title for title, _ in facts}
    passages = [
        (title in support, title, "".join(as_texts(sentences, "sentences")))
        for title, sentences in _pairs(list_of(row, "context"), "title", "sentences")
    ]
    return _over_passages(row, row_id(row, "_id", "id", name=name), passages)


def read_musique(row: Mapping[str, Any], name: str) -> Task:
    """The question and its passages, `paragraphs`."""
    passages = [
        (bool(item["is_supporting"]), text_of(item, "title"), text_of(item, "paragraph_text"))
        for item in list_of(row, "paragraphs")
    ]
    return _over_passages(row, row_id(row, "id", name=name), passages)


def _over_passages(
    row: Mapping[str, Any], name: str, passages: Sequence[tuple[bool, str, str]]
) -> Task:
    """A task with all passages to search in, and six of them to read in their order.

    Those that support the answer are among the six. A passage is one paragraph, its title in the
    first line.
    """
    texts = tuple(f"{title}\n" + " ".join(text.split()) for _, title, text in passages)
    first = sorted(range(len(texts)), key=lambda place: not passages[place][0])[:PASSAGES]
    kept = tuple(texts[place] for place in sorted(first))
    accepted = texts_of(row, "answer_aliases")
    return Task(name, row["question"], text_of(row, "answer"), kept, texts, accepted)


def _pairs(value: Any, first: str, second: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        value = zip(value[first], value[second], strict=True)
    return [(as_text(left, first), right) for left, right in value]


def _math(name: str, about: str, hub: Hub | None) -> Suite:
    return Suite(name, about, read_problem, by_math, math_team, BOXED, hub=hub, shipped=not hub)


def _code(name: str, about: str, hub: Hub | None) -> Suite:
    return Suite(name, about, read_function, by_tests, code_team, FENCED, hub=hub, shipped=not hub)


def _questions(name: str, about: str, hub: Hub | None) -> Suite:
    read = read_musique if name == "musique" else read_hotpotqa
    return Suite(name, about, read, by_words, rag_team, SHORT, PASSAGES, hub, shipped=not hub)


_SUITES = (
    _math(
        "math500", "500 competition problems, five levels", Hub("HuggingFaceH4/MATH-500", "test")
    ),
    _math("aime2024", "30 problems of AIME I and II 2024", Hub("HuggingFaceH4/aime_2024", "train")),
    Suite(
        "gsm8k",
        "1,319 word problems of grade school",
        read_gsm8k,
        by_math,
        math_team,
        "End with the answer as a number: #### NUMBER.",
        hub=Hub("openai/gsm8k", "test", "main"),
    ),
    _code("humaneval", "164 Python functions with tests", Hub("openai/openai_humaneval", "test")),
    Suite(
        "mmlu",
        "questions of 57 subjects, four choices each",
        read_mmlu,
        by_letter,
        answer_team,
        "End with: Answer: LETTER.",
        hub=Hub("cais/mmlu", "test", "all"),
    ),
    _questions(
        "hotpotqa",
        "questions over two of ten passages",
        Hub("hotpotqa/hotpot_qa", "validation", "distractor"),
    ),
    _questions(
        "musique",
        "questions of two to four hops over twenty passages",
        Hub("dgslibisey/MuSiQue", "validation"),
    ),
    _questions(
        "2wiki",
        "questions over two to four of ten passages",
        Hub("framolfese/2WikiMultihopQA", "validation"),
    ),
    _math("math-mini", "60 problems, half of them easy, shipped with kvcomm", None),
    _code("code-mini", "54 Python functions, half of them easy, shipped with kvcomm", None),
    _questions("rag-mini", "54 questions, half of them easy, shipped with kvcomm", None),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}


def find_suite(name: str) -> Suite:
    """The suite called `name`, or that of a file: FILE.py[:NAME], FILE.jsonl.

    Raises `UsageError` for anything else.
    """
    if name in SUITES:
        return SUITES[name]
    if name.endswith(".jsonl"):
        return suite_of_lines(Path(name))
    if ".py" in name:
        return suite_file(name)
    raise UsageError(
        f"suite {name!r} is unknown: choose one of {', '.join(SUITES)}, a FILE.jsonl with `input` "
        "and `target`, or FILE.py[:NAME]"
    )


def load_suite(name: str, folder: Path | None = None) -> tuple[Suite, list[Task]]:
    """A suite and its tasks. Raises `UsageError` where there are none."""
    suite = find_suite(name)
    return suite, suite.tasks(folder)
