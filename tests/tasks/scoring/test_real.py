"""Real golds, rows and solutions, written as models write them; the official functions."""

import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvcomm.tasks.scoring import MathScorer, score_qa
from kvcomm.tasks.scoring.choice import chosen_letter
from kvcomm.tasks.scoring.code import score_code
from kvcomm.tasks.scoring.qa import f1, normalised
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox
from tests.tasks.real import ANSWERS, read_lines, real_rows

pytestmark = pytest.mark.slow

# Of every kind what models write around an answer.
FRAMES: dict[str, list[str]] = {}
for _kind, _frame in read_lines(ANSWERS / "frames.jsonl"):
    FRAMES.setdefault(_kind, []).append(_frame)


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    with MathScorer() as made:
        yield made


def golds() -> list[str]:
    found = [str(row["answer"]) for name in ("math500", "aime2024") for row in real_rows(name)]
    assert len(found) == 530
    return found


@pytest.mark.parametrize("frame", FRAMES["mathematics"])
def test_every_gold_answer_is_right_in_every_frame(scorer: MathScorer, frame: str) -> None:
    texts = [(frame.replace("GOLD", gold), gold) for gold in golds()]
    assert [gold for text, gold in texts if not scorer.score(text, gold).correct] == []


@pytest.mark.parametrize("frame", ["\\boxed{GOLD}", "The answer is GOLD.", "So we get\n$$GOLD$$"])
def test_other_gold_answers_are_wrong(scorer: MathScorer, frame: str) -> None:
    different = sorted(set(golds()))
    drawn = random.Random(1)
    pairs = [drawn.sample(different, 2) for _ in range(3000 if "box" in frame else 1000)]
    right = [
        (answer, gold)
        for answer, gold in pairs
        if not same(answer, gold) and scorer.score(frame.replace("GOLD", answer), gold).correct
    ]
    assert right == []


def same(answer: str, gold: str) -> bool:
    """Whether two different texts are one answer: a leading zero, a degree sign, a dollar sign."""
    bare = [text.replace("^\\circ", "").replace("\\$", "").lstrip("0") for text in (answer, gold)]
    return bare[0] == bare[1]


@pytest.mark.parametrize("ending", FRAMES["a solution of GSM8K"])
def test_solutions_with_their_number_behind(scorer: MathScorer, ending: str) -> None:
    wrong = []
    for row in real_rows("gsm8k"):
        solution, _, gold = row["answer"].rpartition("####")
        gold = gold.strip().replace(",", "")
        end = ending.replace("GOLD", gold).replace("GROUPED", f"{int(gold):,}")
        if not scorer.score(solution + end, gold).correct:
            wrong.append(end)
    assert wrong == []


def test_solutions_as_they_are(scorer: MathScorer) -> None:
    gsm8k = [
        (row["answer"], row["answer"].rpartition("####")[2].strip()) for row in real_rows("gsm8k")
    ]
    math500 = [(row["solution"], row["answer"]) for row in real_rows("math500")]
    assert (len(gsm8k), len(math500)) == (1319, 500)
    assert [gold for text, gold in gsm8k + math500 if not scorer.score(text, gold).correct] == []


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
    def reason(row: dict[str, Any], answer: str) -> str:
        function, tests = row["entry_point"], row["test"]
        return score_code(sandbox, answer, row["prompt"], function, tests, Limits()).reason

    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(reason, rows, answers))
    return {row["task_id"]: why for row, why in zip(rows, said, strict=True)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_solutions_pass_in_every_form(sandbox: Sandbox, form: Callable[[str, str], str]) -> None:
    rows = real_rows("humaneval")
    answers = [form(row["prompt"], row["canonical_solution"]) for row in rows]
    said = reasons(sandbox, rows, answers)
    assert {row: why for row, why in said.items() if why != "passed"} == {}
    assert len(said) == 164


@pytest.mark.parametrize("body", ["    pass\n", "    return None\n", "    return 'x' * 3\n"])
@pytest.mark.parametrize("name", FORMS)
def test_wrong_bodies_fail_in_every_form(sandbox: Sandbox, name: str, body: str) -> None:
    rows = real_rows("humaneval")[:: 1 if name == "fenced function" else 8]
    said = reasons(sandbox, rows, [FORMS[name](row["prompt"], body) for row in rows])
    assert [row for row, why in said.items() if why == "passed"] == []


def framed(frames: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
    """Every row in every frame: the text, the choices, the right letter."""
    for row in real_rows("mmlu"):
        right, choices = row["answer"], row["choices"]
        letter, wrong = "ABCD"[right], "ABCD"[right - 1]
        parts = {"letter": letter, "small": letter.lower(), "wrong": wrong}
        parts |= {"text": choices[right], "other": choices[right - 1]}
        for frame in frames:
            yield frame.format(**parts), choices, letter


def test_letters_are_read_in_every_usual_frame() -> None:
    misread = [
        (text, choices)
        for text, choices, letter in framed(FRAMES["a letter"])
        if chosen_letter(text, choices) != letter
    ]
    assert not misread


def test_letters_that_are_not_chosen_are_not_read() -> None:
    misread = [
        text for text, choices, _ in framed(FRAMES["no letter"]) if chosen_letter(text, choices)
    ]
    assert not misread


def official(text: str) -> list[str]:
    """The words that SQuAD and HotpotQA compare: lower case, then no punctuation, no articles."""
    letters = [sign for sign in text.lower() if sign not in string.punctuation]
    return re.sub(r"\b(a|an|the)\b", " ", "".join(letters)).split()


def squad_f1(answer: str, gold: str) -> float:
    """SQuAD 1.1's F1, written with lists."""
    mine, left = official(answer), official(gold)
    size, same = len(mine) + len(left), 0
    for word in mine:
        if word in left:
            left.remove(word)
            same += 1
    return 2 * same / size if same else 0.0


def hotpot_f1(answer: str, gold: str) -> float:
    """HotpotQA's F1: 0 where one is a bare yes, no or noanswer, and the other is another text."""
    mine, true = " ".join(official(answer)), " ".join(official(gold))
    closed = ("yes", "no", "noanswer")
    return 0.0 if mine != true and (mine in closed or true in closed) else squad_f1(answer, gold)


def perturbed(gold: str, chance: random.Random) -> list[str]:
    """Golds that someone could have written instead."""
    words = gold.split()
    mixed = chance.sample(words, len(words))
    dropped = words[: chance.randrange(len(words) + 1)]
    return [
        gold.upper(),
        f"the {gold}!",
        " ".join(mixed),
        " ".join(dropped) or "no",
        f"{gold} {chance.choice(words)}",
        f"yes {gold}",
        gold.replace(" ", "-"),
    ]


def test_em_and_f1_are_the_official_ones() -> None:
    chance = random.Random(0)
    rows = [*real_rows("hotpotqa"), *real_rows("hotpotqa_train100"), *real_rows("musique")]
    golds = [[row["answer"], *row.get("answer_aliases", ())] for row in rows]
    assert len(golds) == 400
    for accepted in golds:
        others = [chance.choice(chance.choice(golds)) for _ in range(5)]
        for answer in (
            *accepted,
            *others,
            *perturbed(accepted[0], chance),
            "yes",
            "no",
            "noanswer",
        ):
            score = score_qa(f"I read it.\n\nAnswer: {answer}", accepted)
            assert score.value == any(official(answer) == official(gold) for gold in accepted)
            assert score.metrics["f1"] == pytest.approx(
                max(hotpot_f1(answer, gold) for gold in accepted), abs=1e-12
            )
            for gold in accepted:
                assert normalised(answer).split() == official(answer)
                if not {normalised(answer), normalised(gold)} & {"yes", "no", "noanswer"}:
                    assert f1(answer, gold) == pytest.approx(squad_f1(answer, gold), abs=1e-12)


def test_golds_are_found_in_every_usual_frame() -> None:
    rows = [*real_rows("hotpotqa"), *real_rows("hotpotqa_train100"), *real_rows("musique")]
    for gold in (row["answer"] for row in rows):
        for frame in FRAMES["words"]:
            assert score_qa(frame.format(gold), [gold]).correct, (frame, gold)
