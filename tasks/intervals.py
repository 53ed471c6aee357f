"""95 % intervals: of shares, of means, of differences of pairs, and of ratios of medians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 10_000
Z = NormalDist().inv_cdf(0.975)
CHUNK = 500  # resamples at a time, so that memory stays small


def wilson(right: float, count: int) -> Interval:
    """Wilson's score interval of a share: `right` of `count` (Wilson 1927, JASA 22, 209-212).

    It is never empty, and stays within 0 and 1: 0 of 12 is 0 % to 24 %.
    """
    if not count:
        return (0.0, 1.0)
    share = right / count
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    scale = 1 + Z * Z / count
    low = (middle - half) / scale if right > 0 else 0.0
    high = (middle + half) / scale if right < count else 1.0
    return (low, high)


def newcombe(both: int, first: int, second: int, neither: int) -> Interval:
    """The interval of the difference of two shares of the same samples.

    The counts are the samples that both got right, only the first, only the second, neither.
    Newcombe's method 10: Wilson's intervals, squared and added, with a corrected φ (Newcombe 1998,
    Statistics in Medicine 17, 2635-2650).
    """
    count = both + first + second + neither
    if not count:
        return (-1.0, 1.0)
    mine, theirs = both + first, both + second
    low, high = (end - mine / count for end in wilson(mine, count))
    other_low, other_high = (end - theirs / count for end in wilson(theirs, count))
    margins = mine * (count - mine) * theirs * (count - theirs)
    product: float = both * neither - first * second
    if product > 0:
        product = max(product - count / 2, 0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * phi * abs(a * b)))

    difference = (mine - theirs) / count
    return (difference - reach(low, other_high), difference + reach(high, other_low))


def of_mean(values: Sequence[float], least: float = 0.0, most: float = 1.0) -> Interval:
    """The interval of the mean of values between `least` and `most`.

    Percentiles of seeded bootstrap resamples (Efron & Tibshirani 1993, chapter 13). Where all
    values are equal, resamples say nothing: then the rule of three does (Hanley &
    Lippman-Hand 1983, JAMA 249, 1743-1745): up to 1 - 0.05^(1/n) of all values may be others.
    """
    if not values:
        return (least, most)
    low, high = min(values), max(values)
    if low == high:
        others = 1 - 0.05 ** (1 / len(values))
        return (low - others * max(0.0, low - least), low + others * max(0.0, most - low))
    array = np.asarray(values, dtype=float)
    return _percentiles(len(array), lambda drawn: array[drawn].mean(axis=1))


def of_score(values: Sequence[float]) -> Interval:
    """Wilson's interval where every value is 0 or 1, that of a mean where they are not."""
    if all(value in (0, 1) for value in values):
        return wilson(sum(values), len(values))
    return of_mean(values)


def of_difference(pairs: Sequence[tuple[float, float]]) -> Interval:
    """The interval of the mean difference of pairs, the first minus the second.

    Newcombe's where every value is 0 or 1, else the paired bootstrap.
    """
    if all(value in (0, 1) for pair in pairs for value in pair):
        return newcombe(*map(list(pairs).count, ((1, 1), (1, 0), (0, 1), (0, 0))))
    return of_mean([a - b for a, b in pairs], -1.0, 1.0)


def of_ratio(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """The interval of the ratio of medians, first to second, by the paired bootstrap.

    None for less than two pairs.
    """
    if len(pairs) < 2:
        return None
    first, second = np.asarray(pairs, dtype=float).T
    return _percentiles(
        len(pairs), lambda drawn: np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1)
    )


def _percentiles(count: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """The middle 95 % of a statistic over resamples of `count` places, seeded."""
    draw = np.random.default_rng(0)
    found = [statistic(draw.integers(0, count, (CHUNK, count))) for _ in range(RESAMPLES // CHUNK)]
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return (float(low), float(high))
