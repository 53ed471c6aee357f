"""Letters and short answers over real rows: usual frames, and the official functions."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence

import pytest

from kvcomm.tasks.scoring import score_qa
from kvcomm.tasks.scoring.choice import chosen_letter
from kvcomm.tasks.scoring.qa import f1, normalised
from tests.tasks.real import real_rows

pytestmark = pytest.mark.slow

FRAMES = (
    "Answer: {letter}",
    "The answer is {letter}.",
    "The correct answer is ({letter}) {text}.",
    "{letter}",
    "({letter})",
    "**{letter}**",
    "\\boxed{{{letter}}}",
    "\\boxed{{\\text{{{letter}}}}}",
    "It follows from the rule. ({letter})",
    "It follows from the rule.\n\n(X) {letter}",
    "So it must be {text} ({letter})",
    "{letter}. {text}",
    "{letter} — {text}",
    "{small}) {text}",
    "The answer is {text}",
    "Answer: {text}",
    "{text}",
    "I would pick {letter}.",
    "{letter} is correct.",
    "Option {letter} is the best answer.",
    "{letter}, because {text} fits.",
    "Therefore, the correct answer would be {letter}.",
    "The answer is not {wrong} but {letter}.",
    "The answer is ({letter}), since {text} fits and {other} does not.",
    "<answer>{letter}</answer>",
    "Answer： '{letter}'",
    "Answer: {letter} ({text})",
    "Answer: {small}. {text}",
)
UNDECIDED = (
    "I would not pick {letter}.",
    "{letter} is wrong.",
    "The answer is not {letter}.",
    "The answer is {letter} or {wrong}.",
    "Both ({letter}) and ({wrong}) are plausible.",
    "This rules out ({letter}).",
    "Is {letter} the answer?",
)


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
        for text, choices, letter in framed(FRAMES)
        if chosen_letter(text, choices) != letter
    ]
    assert not misread


def test_letters_that_are_not_chosen_are_not_read() -> None:
    misread = [text for text, choices, _ in framed(UNDECIDED) if chosen_letter(text, choices)]
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
        for frame in (
            "Answer: {}",
            "Answer: {}.\n\nThe answer is supported by passage 2.",
            "The answer is clear from passage 3.\n\n{}",
            "The answer to this question is {}.",
            "**Final answer:** {} (passage 2)",
            "<answer>{}</answer>",
            "\\boxed{{\\text{{{}}}}}",
            "Answer： 1. {} [3]",
        ):
            assert score_qa(frame.format(gold), [gold]).correct, (frame, gold)
