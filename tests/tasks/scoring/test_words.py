"""Short answers: `answers/words.jsonl`, a kind, a text, the gold answer, how it is met.

It is `exact` what was read, `equal` to it without case, articles and punctuation, or `other`.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring import score_qa
from kvcomm.tasks.scoring.qa import f1, normalised, short_answer
from tests.tasks.real import cases


@pytest.mark.parametrize(("text", "gold", "met"), cases("words"))
def test_words_are_read(text: str, gold: str, met: str) -> None:
    score = score_qa(text, [gold])
    assert score.correct == (met != "other"), score
    assert (score.extracted == gold) == (met == "exact"), score


@pytest.mark.parametrize(
    ("text", "accepted", "em", "best"),
    [
        ("Answer: Ada", ["Ada Lovelace", "Ada"], 1, 1),
        ("Answer: Ada King Lovelace", ["Ada Lovelace"], 0, 4 / 5),
        ("Answer: Rush (the band)", ["Rush"], 0, 2 / 3),
        ("Answer: yes, it is", ["yes"], 0, 0),
        ("Answer: 1,234", ["1234"], 1, 1),
    ],
)
def test_exact_match_and_f1(text: str, accepted: list[str], em: float, best: float) -> None:
    score = score_qa(text, accepted)
    assert score.value == score.metrics["em"] == em
    assert score.metrics["f1"] == pytest.approx(best)
    assert score.correct == bool(em)


def test_nothing_to_read_and_words_that_are_none() -> None:
    for gold in ("x", "The"):  # of an article alone nothing is left either
        score = score_qa("", [gold])
        assert (score.reason, score.correct) == ("no answer found", False)
    assert normalised("The  An-swer, a 'Test'!") == "answer test"
    # HotpotQA's rule holds where one of the two answers is a bare yes, no or noanswer.
    assert f1("yes", "yes") == 1
    assert f1("no", "no man is an island") == f1("noanswer", "no answer") == 0


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
