"""Short answers in words, and letters, against tables of known ones."""

from __future__ import annotations

import pytest

from kvcomm.tasks.scoring import score_choice, score_qa
from kvcomm.tasks.scoring.qa import f1, normalised, short_answer


@pytest.mark.parametrize(
    ("text", "accepted", "em", "best"),
    [
        ("Answer: The Eiffel Tower.", ["Eiffel Tower"], 1, 1),
        ("the answer is **Ada Lovelace**", ["ada lovelace"], 1, 1),
        ("Answer: Ada", ["Ada Lovelace", "Ada"], 1, 1),
        ("Answer: Ada King Lovelace", ["Ada Lovelace"], 0, 4 / 5),
        ("Answer: Rush (the band)", ["Rush"], 0, 2 / 3),
        ("Answer: yes", ["yes"], 1, 1),
        ("Answer: yes, it is", ["yes"], 0, 0),
        ("Answer: no", ["yes"], 0, 0),
        ("Answer: 1,234", ["1234"], 1, 1),
        ('**Answer**: "Rush".', ["Rush"], 1, 1),
        ("Answer:\nParis\nfor it is the capital", ["Paris"], 1, 1),
        ("Answer: Washington D.C.", ["Washington, DC"], 1, 1),
        ("I think so.\n\nParis", ["Paris"], 1, 1),
        ("It is Paris.\nAnswer: London", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
    ],
)
def test_words(text: str, accepted: list[str], em: float, best: float) -> None:
    score = score_qa(text, accepted)
    assert score.value == score.metrics["em"] == em
    assert score.metrics["f1"] == pytest.approx(best)
    assert score.correct == bool(em)


def test_nothing_to_read_says_so() -> None:
    for gold in ("x", "The"):  # of an article alone nothing is left either
        score = score_qa("", [gold])
        assert score.reason == "no answer found"
        assert not score.correct


def test_normalisation_is_the_official_one() -> None:
    assert normalised("The  An-swer, a 'Test'!") == "answer test"


def test_yes_and_no_share_words_with_nothing() -> None:
    """HotpotQA's rule holds where one of the two answers is a bare yes, no or noanswer."""
    assert f1("yes", "yes") == 1
    assert f1("no", "no man is an island") == 0
    assert f1("noanswer", "no answer") == 0


def test_the_last_line_counts_where_nothing_is_announced() -> None:
    assert short_answer("Let me see.\nI found it.\n\n*Rush*\n") == "Rush"


CHOICES = ("a red fox", "eight", "eighty", "none of these")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("The answer is (C).", "C"),
        ("the answer is **D**", "D"),
        ("Answer: B. eight", "B"),
        ("Answer: b", "B"),
        ("Answer: eight", "B"),
        ("Answer: the second one, (B)", "B"),
        (r"So \boxed{A}", "A"),
        (r"So \boxed{\text{C}}", "C"),
        ("Let me think.\n\nC", "C"),
        ("Let me think.\nB) eight", "B"),
        ("Option D", "D"),
        ("A good reason speaks for eighty", "C"),
        ("Answer: A good reason speaks for it", ""),
        ("A or B, who knows", ""),
        ("eight or eighty", ""),
        ("The answer is A. No: the answer is C", "C"),
        ("The answer is B. I hope the answer is clear.", "B"),
        ("**Answer**: C", "C"),
        ("The correct option is D", "D"),
        ("The answer is definitely B", "B"),
        ("The answer is B because (A) is wrong", "B"),
        ("The answer is A because B is wrong", "A"),
        ("The best answer is D, not B", "D"),
        ("Answer: (C), a choice like (A)", "C"),
        ("Answer: not B", ""),
        ("Answer: A or C", ""),
        ("The answer is (A) or (B)", ""),
        ("Answer: A/B", ""),
        (r"$$\boxed{\textbf{(D)}}$$", "D"),
        ("C\nFor it is late.", "C"),
        ("A. a red fox, no\nB. eight, yes\nC. eighty, no\nD. none of these, no", ""),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_letters(text: str, letter: str) -> None:
    for gold in "ABCD":
        score = score_choice(text, gold, CHOICES)
        assert score.extracted == letter
        assert score.correct == (letter == gold)
