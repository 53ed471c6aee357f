"""Short answers in words against tables of known ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring import score_qa
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # A line that is there for the answer comes before a sentence about it.
        ("Answer: Paris\n\nThe answer is supported by passage 2.", "Paris"),
        ("**Final answer:** Paris\n\nSo the answer is the capital.", "Paris"),
        ("## Answer\n\nParis\n\nThe answer is stated in the text.", "Paris"),
        ("Answer: Paris. The answer is found in passage 2.", "Paris"),
        ("The answer is London.\nAnswer: Paris", "Paris"),
        ("Answer: London\nWait.\nAnswer: Paris", "Paris"),
        ("Answer: Paris\n\nAnswer:", "Paris"),
        # What is said about the answer is none, unless there is nothing else.
        ("The answer is clear from passage 3.\n\nParis", "Paris"),
        ("Paris\n\nThe answer is clear from passage 3.", "Paris"),
        ("The answer can be found in passage 2.\n\nParis", "Paris"),
        ("The answer is not in the passages.\nunknown", "unknown"),
        ("The answer is clear from passage 3: Paris", "Paris"),
        ("The answer is as follows:\nParis\nIt is a capital.", "Paris"),
        ("\\boxed{Paris}\n\nThe answer is given in passage 1.", "Paris"),
        ("The answer is supported by evidence", "supported by evidence"),
        ("The answer is in Paris", "in Paris"),
        ("The answer is Paris.\n\nI hope this helps.", "Paris"),
        # Within a sentence the first mark counts, but in lower case one repeats another.
        ("Answer: The Answer Is Never", "The Answer Is Never"),
        ("Answer: Answer Me", "Answer Me"),
        ("The answer is The Answer Is Never", "The Answer Is Never"),
        ("Answer: The answer is Paris.", "Paris"),
        ("The answer is London. No: the answer is Paris", "Paris"),
        ("The answer to this question would be Paris.", "Paris"),
        # Tags, LaTeX, quotes, other scripts.
        ("<answer>Paris</answer>", "Paris"),
        ("<answer>\nParis\n</answer>\nThe answer is final.", "Paris"),
        ("[ANSWER]Paris[/ANSWER]", "Paris"),
        ("<b>Answer:</b> <i>Paris</i>", "Paris"),
        ("\\boxed{\\text{Paris}}", "Paris"),
        ("So the answer is $\\boxed{\\textbf{Paris}}$.", "Paris"),
        ("Answer: \\text{New York}", "New York"),
        ("Answer： Paris", "Paris"),
        ("Answer: 'Paris'", "Paris"),
        ("Answer: «Paris».", "Paris"),
        # The number of a list.
        ("1. Paris", "Paris"),
        ("Answer: 1) Paris", "Paris"),
        ("I found it:\n(1) Paris", "Paris"),
        ("Answer:\n- Paris", "Paris"),
        ("Answer: 1. FC Köln", "1. FC Köln"),
        ("Answer: 2. Bundesliga", "2. Bundesliga"),
        ("Answer: 24", "24"),
        ("Answer: 1.5 miles", "1.5 miles"),
        # A source behind it.
        ("Answer: Paris (passage 2)", "Paris"),
        ("Answer: **Paris** (see passages 1 and 3).", "Paris"),
        ("Answer: Paris (Source: Wikipedia)", "Paris"),
        ("Answer: Paris (as stated in the second document)", "Paris"),
        ("Answer: Paris (ref. 4) [1][2]", "Paris"),
        ("Answer: Paris (p. 3)", "Paris"),
        ("Answer: Paris [passage 2]", "Paris"),
        ("Answer: Paris (Texas)", "Paris (Texas)"),
        ("Answer: Context (text adventure)", "Context (text adventure)"),
        ("Answer: Speed (in Texturama)", "Speed (in Texturama)"),
        ("Answer: Eve (P. F. Sloan)", "Eve (P. F. Sloan)"),
        ("Answer: Marty (played by Doc Brown)", "Marty (played by Doc Brown)"),
        ("Answer: Mambo (1999)", "Mambo (1999)"),
        ("Answer: (passage 2)", "(passage 2)"),
    ],
)
def test_the_answer_is_found_and_nothing_else(text: str, answer: str) -> None:
    assert short_answer(text) == answer
    assert score_qa(text, [answer]).correct


@given(st.text(max_size=60), st.sampled_from(("Answer: {}\nBye.", "<answer>{}</answer>", "{}")))
def test_any_text_is_read(text: str, frame: str) -> None:
    score = score_qa(frame.format(text), ["Paris"])
    assert 0 <= score.value <= score.metrics["f1"] <= 1


@given(st.text("abkz ", min_size=1).filter(str.strip))
def test_an_answer_is_found_in_every_frame(answer: str) -> None:
    for frame in (
        "Answer: {}",
        "Hm.\n**Answer:** {}\nThe answer is given in passage 1.",
        "The answer is clear.\n{}",
        "<answer>{}</answer>",
        "\\boxed{{\\text{{{}}}}}",
        "Answer： {} (passage 12)",
        "1. {}",
    ):
        assert short_answer(frame.format(answer)) == answer.strip()
