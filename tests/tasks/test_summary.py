"""Summaries and comparisons of samples made by hand, against slow references."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.record import CallRow, Sample
from kvcomm.tasks.summary import comparison, interval, mcnemar, summary_of


def call(node: str = "judge", prompt: int = 100, computed: int = 40, **fields: Any) -> CallRow:
    return CallRow(
        **{
            "node": node,
            "prompt_tokens": prompt,
            "computed_tokens": computed,
            "realigned_tokens": 60,
            "output_tokens": 9,
            "ttft_s": 0.5,
            **fields,
        }
    )


def sample(task: str, correct: bool, mode: str = "exact", **fields: Any) -> Sample:
    return Sample(
        **{
            "task": task,
            "repeat": 0,
            "mode": mode,
            "value": float(correct),
            "correct": correct,
            "extracted": "1" if correct else "2",
            **fields,
        }
    )


def test_score_reuse_and_times() -> None:
    found = summary_of(
        [
            sample("a", True, calls=[call("solver", 50, 50, realigned_tokens=0), call(ttft_s=0.2)]),
            sample("b", False, calls=[call("solver", 50, 0), call(ttft_s=0.4)], tries=2),
            sample("c", False, error="it broke"),
        ]
    )
    assert found["samples"] == 3
    assert found["score"] == pytest.approx(1 / 3)
    assert found["token_reuse"] == pytest.approx(1 - 130 / 300)
    assert found["call_reuse"] == pytest.approx(3 / 4)
    assert found["ttft_s"] == pytest.approx(0.3)
    assert found["agents"] == {"solver": 0.5, "judge": pytest.approx(0.3)}
    assert (found["errors"], found["retried"]) == (1, 1)


def test_repeats_give_pass_at_k() -> None:
    repeats = [sample("a", right, repeat=n) for n, right in enumerate((True, False, False))]
    repeats += [sample("b", False, repeat=n) for n in range(3)]
    found = summary_of(repeats)
    assert found["pass@1"] == pytest.approx(1 / 6)
    assert found["pass@3"] == pytest.approx(1 / 2)
    assert "pass@1" not in summary_of([sample("a", True)])


def test_audits_and_metrics() -> None:
    found = summary_of(
        [
            sample("a", True, audits=[0.01, 0.03], metrics={"em": 1.0, "f1": 1.0}),
            sample("b", False, metrics={"em": 0.0, "f1": 0.5}),
        ]
    )
    assert found["audits"] == {"count": 2, "mean": pytest.approx(0.02)}
    assert found["metrics"] == {"em": 0.5, "f1": 0.75}


def test_a_comparison() -> None:
    mine = [
        sample("a", True, calls=[call(ttft_s=0.1)], chosen=["s1"]),
        sample("b", False, calls=[call(ttft_s=0.1)], chosen=["s2"]),
        sample("c", True, calls=[call(ttft_s=0.1)]),
    ]
    other = [
        sample("a", True, "dense", calls=[call()], chosen=["s1"]),
        sample("b", True, "dense", calls=[call()], chosen=["s1"]),
        sample("c", True, "dense", calls=[call()]),
    ]
    found = comparison(mine, other)
    assert found["difference"] == pytest.approx(-1 / 3)
    assert found["p_value"] == 1.0
    assert found["consistency"] == {"answer": pytest.approx(2 / 3), "judge": pytest.approx(1 / 2)}
    assert found["ttft_ratio"] == pytest.approx(5.0)


@given(st.integers(0, 8), st.integers(0, 8))
def test_mcnemar_is_the_share_of_coins_as_uneven(first: int, second: int) -> None:
    throws = list(itertools.product((0, 1), repeat=first + second))
    gap = abs(first - second)
    as_uneven = sum(abs(2 * sum(throw) - len(throw)) >= gap for throw in throws)
    assert mcnemar(first, second) == pytest.approx(as_uneven / len(throws))


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    draw = random.Random(0)
    values = [draw.choice((0.0, 1.0, 1.0)) for _ in range(40)]
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(4_000))
    low, high = interval(values)
    assert low == pytest.approx(means[100], abs=0.03)
    assert high == pytest.approx(means[3_899], abs=0.03)
    assert interval(values) == (low, high)  # seeded
    assert interval([]) == (0.0, 0.0)
    assert interval([0.5] * 3) == (0.5, 0.5)
