"""Letters chosen: `answers/letters.jsonl`, a kind, a text, its letter, the choices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring import score_choice
from kvcomm.tasks.scoring.choice import chosen_letter
from tests.tasks.real import cases


@pytest.mark.parametrize(("text", "letter", "choices"), cases("letters"))
def test_letters_are_read(text: str, letter: str, choices: list[str]) -> None:
    assert (chosen_letter(text, choices) or "") == letter


def test_a_score_says_what_was_read_and_why() -> None:
    for gold in "ABCD":
        score = score_choice("The answer is (C).", gold, ("a", "b", "c", "d"))
        assert (score.extracted, score.correct) == ("C", gold == "C")
        assert score.reason == ("equal" if gold == "C" else f"it is {gold}")
    assert score_choice("", "A", ()).reason == "no answer found"


FRAMES = (
    *("Answer: {}", "The answer is ({}).", "The correct answer would be {}.", "I would pick {}."),
    *("Therefore it holds. ( {} )", "{} is the correct answer.", "{}, because it fits."),
    *("<answer>{}</answer>", "Answer： '{}'", "So \\boxed{{\\text{{{}}}}}", "I see.\n\n**{}**"),
)
WORDS = st.text("kmpqwxz", min_size=3, max_size=9)
TEXTS = WORDS | st.sampled_from(("vitamin C", "O(B)", "both A and B", "7", "A, D", "Plan A"))


@given(st.lists(TEXTS, min_size=4, max_size=4), st.sampled_from("ABCD"), st.sampled_from(FRAMES))
def test_a_letter_is_found_in_every_frame(choices: list[str], letter: str, frame: str) -> None:
    assert chosen_letter(frame.format(letter), choices) == letter


@given(st.lists(WORDS, min_size=4, max_size=4, unique=True), st.sampled_from("ABCD"))
def test_a_text_is_found_in_every_frame(choices: list[str], letter: str) -> None:
    text = choices["ABCD".index(letter)]
    for frame in (f"The answer is {text}.", f"Answer: the {text}", f"It was {text} that did it."):
        assert chosen_letter(frame, choices) == letter


@given(st.text(max_size=80), st.lists(st.text(max_size=9), max_size=5))
def test_any_text_is_read(text: str, choices: list[str]) -> None:
    assert chosen_letter(f"Answer: {text}", choices) in (*"ABCD", None)
    assert chosen_letter(text, [text, *choices]) in (*"ABCD", None)
