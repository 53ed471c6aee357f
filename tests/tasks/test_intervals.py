"""Intervals against published numbers, their definitions, and how often they hold the truth."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.intervals import Z, newcombe, of_difference, of_mean, of_ratio, of_score, wilson


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_wilsons_interval_are_just_not_rejected(case: tuple[int, int]) -> None:
    right, count = case
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(right / count - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count))


def test_published_examples() -> None:
    assert wilson(0, 12) == pytest.approx((0.0, 0.2425), abs=1e-4)
    assert wilson(12, 12) == pytest.approx((0.7575, 1.0), abs=1e-4)
    assert of_score([0.0] * 12) == wilson(0, 12)
    assert wilson(0, 0) == (0.0, 1.0)
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert newcombe(54, 0, 0, 0) == pytest.approx((-0.0664, 0.0664), abs=1e-4)
    assert newcombe(0, 0, 0, 0) == (-1.0, 1.0)


def test_newcombes_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Exactly, over all outcomes of 15 pairs, for unlike and for equal shares."""
    count = 15
    for shares in ((0.4, 0.3, 0.1, 0.2), (0.5, 0.05, 0.05, 0.4), (0.7, 0.0, 0.1, 0.2)):
        held = 0.0
        for a, b, c in itertools.product(range(count + 1), repeat=3):
            if a + b + c > count:
                continue
            cells = (a, b, c, count - a - b - c)
            low, high = newcombe(*cells)
            if low <= shares[1] - shares[2] <= high:
                ways = math.factorial(count) / math.prod(math.factorial(n) for n in cells)
                held += ways * math.prod(p**n for p, n in zip(shares, cells, strict=True))
        assert held > 0.93


def test_a_mean_has_the_interval_of_a_plain_bootstrap() -> None:
    draw = random.Random(0)
    values = [draw.choice((0.0, 0.5, 1.0)) for _ in range(40)]
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(4_000))
    low, high = of_mean(values)
    assert low == pytest.approx(means[100], abs=0.03)
    assert high == pytest.approx(means[3_899], abs=0.03)
    assert of_score(values) == (low, high)  # seeded


def test_equal_values_leave_room_for_others() -> None:
    """With 95 %, no more than 1 - 0.05^(1/n) of all values are unlike n that are alike."""
    others = 1 - 0.05 ** (1 / 10)
    assert of_mean([0.5] * 10) == pytest.approx((0.5 - others / 2, 0.5 + others / 2))
    assert of_mean([0.0] * 10, -1, 1) == pytest.approx((-others, others))
    assert of_mean([]) == (0.0, 1.0)


def test_differences_of_shares_and_of_other_scores() -> None:
    pairs = [(1.0, 1.0)] * 36 + [(1.0, 0.0)] * 12 + [(0.0, 1.0)] * 2
    assert of_difference(pairs) == newcombe(36, 12, 2, 0)
    parts = [(0.5, 0.25), (1.0, 0.5), (0.25, 0.5), (1.0, 1.0)]
    assert of_difference(parts) == of_mean([a - b for a, b in parts], -1, 1)


def test_a_ratio_of_medians_over_pairs() -> None:
    draw = random.Random(1)
    pairs = [(draw.uniform(1, 3), draw.uniform(1, 2)) for _ in range(30)]

    def ratio(drawn: list[tuple[float, float]]) -> float:
        first, second = zip(*drawn, strict=True)
        return statistics.median(first) / statistics.median(second)

    ratios = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(4_000))
    assert of_ratio(pairs) == pytest.approx((ratios[100], ratios[3_899]), abs=0.05)
    assert of_ratio([(2.0, 1.0)] * 3) == (2.0, 2.0)
    assert of_ratio(pairs[:1]) is None
