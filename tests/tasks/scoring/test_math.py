"""Mathematical answers against a table of known ones, and comparisons that hang."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring import MathScorer
from kvcomm.tasks.scoring import math as math_module
from kvcomm.tasks.scoring.extract import last_box

EQUAL = [
    ("18", "18"),
    ("18.0", "18"),
    ("1,234", "1234"),
    (r"\$32{,}348", "32348"),
    ("025", "25"),
    ("25", "025"),
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"\frac12"),
    (r"\dfrac{14}{3}", r"\frac{14}{3}"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"\sqrt{117}", r"3\sqrt{13}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    ("-q+p", "p - q"),
    ("x^2+2x+1", "1 + 2x + x^2"),
    ("(x+1)^2", "x^2+2x+1"),
    ("Evelyn", r"\text{Evelyn}"),
    (r"90^\circ", "90"),
    ("50%", r"50\%"),
    (r"[0,\infty)", r"[0, \infty)"),
    (r"(-\infty,2]\cup[3,5)", r"(-\infty, 2] \cup [3, 5)"),
    ("1,-2", "-2,1"),
    (r"\{1,2,3\}", r"\{3,1,2\}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"2^{10}", "1024"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    (r"6 - 5i", "6-5i"),
    (r"\pi/4", r"\frac{\pi}{4}"),
    (r"4210_{5}", "4210_5"),
    (r"5\text{ cm}", "5"),
    (r"\log_2 8", "3"),
    (r"\(42\)", "42"),
    ("x = 5", "5"),
    (r"1 \text{ and } -2", "1,-2"),
    (r"\text{yes}", r"\text{Yes}"),
    ("864", r"864 \mbox{ inches}^2"),
    ("$18.", "18"),
    (r"11,\!111", "11111"),
    ("4210", "4210_5"),
    (r"\textbf{(073)}", "73"),
    (r"\mathbf{25}", "025"),
    (r"\text{25}", "25"),
]
OTHER = [
    ("17", "18"),
    ("18.5", "18"),
    ("1234.5", "1234"),
    (r"\frac{1}{3}", "0.33"),
    (r"\frac{3}{14}", r"\frac{14}{3}"),
    ("(3,4)", "(4,3)"),
    ("[0,1)", "(0,1)"),
    ("p+q", "p-q"),
    ("-5", "5"),
    (r"\text{Carl}", r"\text{Evelyn}"),
    ("1,2", "1,-2"),
    ("1", "1,-2"),
    (r"\sqrt{3}", r"\sqrt{13}"),
    ("(x+1)^2", "x^2+1"),
    ("4210_6", "4210_5"),
    ("4211_5", "4210_5"),
    (r"\text{no}", r"\text{Yes}"),
    ("1,2", "12"),
    ("3.1416", r"\pi"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("", "0"),
    ("5", r"\frac{"),
]


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    with MathScorer() as made:
        yield made


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_answers(scorer: MathScorer, answer: str, gold: str) -> None:
    score = scorer.score(rf"So it is \boxed{{{answer}}}.", gold)
    assert score.correct, score
    assert score.value == 1.0
    assert not score.error


@pytest.mark.parametrize(("answer", "gold"), OTHER)
def test_other_answers(scorer: MathScorer, answer: str, gold: str) -> None:
    score = scorer.score(rf"So it is \boxed{{{answer}}}.", gold)
    assert not score.correct, score
    assert score.value == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and then \boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{1}, not \boxed{2", "1"),
        (r"\fbox{7}", "7"),
        (r"a set \boxed{\{1, 2\}}", r"\{1,2\}"),
        ("The answer is 5. I was sure of 7 first.\nThe answer is: 8", "8"),
        ("Answer: $\\frac{3}{4}$", "0.75"),
        ("**Answer:** 42", "42"),
        ("**Answer**: Evelyn.", "Evelyn"),
        (r"The answer is \(p - q\), as \(p > q\) is not needed", "p-q"),
        (r"The answer is \(p - q\), as wanted", "p-q"),
        ("Answer:\n\\[\n\\frac{1}{2}\n\\]\nDone.", "0.5"),
        ("Answer: $$3$$", "3"),
        ("Answer: $1$ and $2$", "1,2"),
        ("The answer is $20 per day.", "20"),
        ("The answer is 60 km/h.", "60"),
        ("Answer: 14/3, as wanted", "14/3"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("The answer is 18 dollars a day.", "18"),
        ("Answer:\n\n12", "12"),
        ("She sells 9 eggs and makes 9 * 2 = $18 every day.", "18"),
        ("It costs 1,234.50 in all", "1234.5"),
        ("between 3/4 and nothing", "0.75"),
        ("−7 degrees", "-7"),
        ("no idea", ""),
        ("", ""),
    ],
)
def test_where_the_answer_stands(scorer: MathScorer, text: str, answer: str) -> None:
    assert scorer.score(text, "0").extracted == answer


def test_boxes() -> None:
    assert last_box(r"\boxed {a\}b}") == r"a\}b"
    assert last_box(r"\boxed{\text{a\\}} and more}") == r"\text{a\\}"
    assert last_box("none") is None


def test_no_answer_is_wrong_and_says_so(scorer: MathScorer) -> None:
    assert scorer.score("I cannot tell", "3").reason == "no answer found"


def test_a_comparison_that_hangs_is_ended_and_counts_as_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs = (
        "import sys, time\n"
        "for n, line in enumerate(sys.stdin):\n"
        "  time.sleep(60 * n)\n"
        "  print('{}', flush=True)"
    )
    with MathScorer(timeout_s=0.2) as scorer:
        with monkeypatch.context() as patch:
            patch.setattr(math_module, "WORKER", (sys.executable, "-c", hangs))
            began = time.monotonic()
            score = scorer.score(r"\boxed{1/2}", "0.5")
        assert time.monotonic() - began < 5
        assert not score.correct
        assert score.reason == "timed out after 0.2 s"
        assert "0.5" in score.error
        scorer._timeout_s = 30.0
        assert scorer.score(r"\boxed{1/2}", "0.5").correct  # the next process is a new one


def test_an_expression_without_end_harms_nobody() -> None:
    with MathScorer(timeout_s=0.5) as scorer:
        assert not scorer.score(r"\boxed{9^{9^{9^{9}}}}", "7").correct
        scorer._timeout_s = 30.0
        assert scorer.score(r"\boxed{0.25}", r"\frac14").correct


def test_a_process_that_dies_is_an_error_of_that_pair_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with MathScorer() as scorer:
        with monkeypatch.context() as patch:
            patch.setattr(math_module, "WORKER", (sys.executable, "-c", "print('{}')"))
            score = scorer.score(r"\boxed{1/2}", "0.5")
        assert not score.correct
        assert "failed" in score.error
        assert scorer.score(r"\boxed{1/2}", "0.5").correct


def test_a_gold_answer_that_is_no_expression_is_said_to_be_none(scorer: MathScorer) -> None:
    assert "which is no expression" in scorer.score(r"\boxed{5}", r"\frac{").reason
    assert scorer.score(r"Answer: \frac{", r"\frac{").correct


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


def test_without_math_verify_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "kvcomm\[tasks\]"'):
        MathScorer()


@pytest.mark.slow
def test_the_solutions_of_math500_score_100_percent(scorer: MathScorer) -> None:
    path = Path(os.environ.get("KVCOMM_DATA", "")) / "math500.jsonl"
    if "KVCOMM_DATA" not in os.environ or not path.exists():
        pytest.skip("KVCOMM_DATA names no folder with math500.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500
    wrong = [r["unique_id"] for r in rows if not scorer.score(r["solution"], r["answer"]).correct]
    assert wrong == []
