"""Scores of tokens, against the formulas written as loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.reuse.attended import best, by_attention, by_place

Texts = list[list[float]]
texts = st.lists(
    st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=30), min_size=1, max_size=4
)


@given(texts)
def test_attention_and_place_as_in_the_formula(attention: Texts) -> None:
    found = by_attention(attention)
    weights = []
    for one in attention:
        largest = sorted(one)[-16:]
        rho = sum(largest) / len(largest)
        weights.append([rho * math.exp(-place / 12) for place in range(len(one))])
    total = sum(map(sum, attention)) or 1
    weight = sum(map(sum, weights)) or 1
    for number, one in enumerate(attention):
        for place, a in enumerate(one):
            expected = a / total + 0.6 * (weights[number][place] / weight)
            assert found[number][place] == pytest.approx(expected)


def test_leading_tokens_come_first_and_those_that_spread() -> None:
    assert best(by_place([5, 5], [(), ()]), [set(range(5))] * 2, 4) == [{0, 1}, {0, 1}]
    spread = [(0, 0, 0, 0, 9.0), (0, 0, 0, 0, 0)]
    assert best(by_place([5, 5], spread), [set(range(5))] * 2, 3) == [{0, 4}, {0}]
    # A text whose spread is not known: none counts.
    assert best(by_place([5, 5], [spread[0], ()]), [set(range(5))] * 2, 2) == [{0}, {0}]


@given(texts, st.integers(0, 40), st.data())
def test_the_best_of_what_is_allowed(scores: Texts, count: int, data: st.DataObject) -> None:
    allowed = [data.draw(st.sets(st.integers(0, len(one) - 1))) for one in scores]
    found = best(scores, allowed, count)
    assert sum(map(len, found)) == min(count, sum(map(len, allowed)))
    assert all(mine <= free for mine, free in zip(found, allowed, strict=True))
    pairs = list(zip(scores, found, allowed, strict=True))
    taken = [one[place] for one, mine, _ in pairs for place in mine]
    left = [one[place] for one, mine, free in pairs for place in free - mine]
    assert not taken or not left or min(taken) >= max(left)
