"""Mathematical answers against known ones, and comparisons that hang.

A line of `answers/math.jsonl` holds a kind, a text, the gold answer, and whether it is right; one
of `answers/math_read.jsonl` a kind, a text, and how its answer reads.
"""

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvcomm.tasks.scoring import MathScorer
from kvcomm.tasks.scoring import math as math_module
from kvcomm.tasks.scoring.extract import last_box
from tests.tasks.real import cases


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    with MathScorer(timeout_s=60) as made:
        yield made


@pytest.mark.parametrize(("text", "gold", "right"), cases("math"))
def test_answers_are_compared(scorer: MathScorer, text: str, gold: str, right: bool) -> None:
    score = scorer.score(text, gold)
    assert (score.correct, score.value, score.error) == (right, float(right), ""), score


@pytest.mark.parametrize(("text", "answer"), cases("math_read"))
def test_answers_are_found(scorer: MathScorer, text: str, answer: str) -> None:
    assert scorer.score(text, "0").extracted == answer


@pytest.mark.parametrize(
    "answer",
    [
        *(r"1, 3, \ldots, 99", "12 apples over 3 pears", r"4\frac{1}{2}x +", "5 12"),
        *(r"\text{more than } 5", "5 squared apples"),
    ],
)
def test_what_is_read_in_part_is_not_comparable(scorer: MathScorer, answer: str) -> None:
    score = scorer.score(rf"\boxed{{{answer}}}", "4")
    assert (score.correct, score.reason) == (False, "not comparable")
    assert scorer.score(rf"\boxed{{{answer}}}", answer).correct


def test_boxes_and_answers_that_are_none(scorer: MathScorer) -> None:
    assert last_box(r"\boxed {a\}b}") == r"a\}b"
    assert last_box(r"\boxed{\text{a\\}} and more}") == r"\text{a\\}"
    assert last_box("none") is None
    assert scorer.score("I cannot tell", "3").reason == "no answer found"
    # A gold answer that is no expression is compared as text.
    assert "which is no expression" in scorer.score(r"\boxed{5}", r"\frac{").reason
    assert scorer.score(r"Answer: \frac{", r"\frac{").correct


HANGS = """
import sys, time
for n, line in enumerate(sys.stdin):
    time.sleep(600 * n)
    print('{}', flush=True)
"""


@pytest.mark.parametrize(
    ("program", "reason", "error"),
    [(HANGS, "timed out after 1 s", "0.5"), ("print('{}')", "", "failed")],
)
def test_a_process_that_hangs_or_dies_is_an_error_of_that_pair_only(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str, error: str
) -> None:
    with MathScorer(timeout_s=1) as scorer:
        with monkeypatch.context() as patch:
            patch.setattr(math_module, "WORKER", (sys.executable, "-c", program))
            score = scorer.score(r"\boxed{1/2}", "0.5")
        assert not score.correct
        assert reason in score.reason
        assert error in score.error
        scorer._timeout_s = 30.0
        assert scorer.score(r"\boxed{1/2}", "0.5").correct  # the next process is a new one


def test_an_expression_without_end_harms_nobody() -> None:
    with MathScorer(timeout_s=0.5) as scorer:
        assert not scorer.score(r"\boxed{9^{9^{9^{9}}}}", "7").correct
        scorer._timeout_s = 30.0
        assert scorer.score(r"\boxed{0.25}", r"\frac14").correct


def test_threads_share_a_process(scorer: MathScorer) -> None:
    pairs = [(rf"\boxed{{{n}/7}}", rf"\frac{{{n + n % 2}}}{{7}}") for n in range(1, 13)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: scorer.score(*pair).correct, pairs))
    assert found == [n % 2 == 0 for n in range(1, 13)]


def test_the_process_ends_with_its_scorer() -> None:
    scorer = MathScorer()
    assert scorer._process is None  # it starts when it is needed
    assert scorer.score(r"\boxed{1/2}", "0.5").correct
    process = scorer._process
    assert process
    del scorer
    gc.collect()
    assert process.poll() is not None
