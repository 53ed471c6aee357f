"""Which tokens of realigned texts are computed: scores of tokens, and the best of all texts.

The query-aware rule: tokens that the prompt behind the texts attends to, and the leading tokens of
texts that it attends to. Without a look at attention: leading tokens, and those whose KV differed
most between the prompts that have read the text. All texts of a prompt share one budget.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

# A text counts by the mean of its so many largest attentions; a place by exp(-place / FADES).
LARGEST = 16
FADES = 12.0
PLACE = 0.6

Scores = list[list[float]]


def by_attention(attention: Sequence[Sequence[float]]) -> Scores:
    """The score of every token of every text: a(t) / Σa + 0.6 · w(t) / Σw.

    `attention` is a(t): over the queries the maximum, summed over layers and heads. With o the
    token's place in its text, w(t) = (mean of the 16 largest a of the text) · exp(-o / 12).
    """
    weights = []
    for one in attention:
        largest = heapq.nlargest(LARGEST, one)
        weights.append([sum(largest) / max(len(largest), 1) * fade for fade in _fades(len(one))])
    shares, places = _shares(attention), _shares(weights)
    return [
        [share + PLACE * place for share, place in zip(*both, strict=True)]
        for both in zip(shares, places, strict=True)
    ]


def by_place(sizes: Sequence[int], spreads: Sequence[Sequence[float]]) -> Scores:
    """The score of every token of texts of these sizes: e(t) / Σe + u(t) / Σu, e = exp(-o / 12).

    u(t) is the token's spread between contexts. It counts where all texts have one; else their
    `spreads` are empty, and leading tokens come first.
    """
    places = _shares([_fades(size) for size in sizes])
    if not all(len(spread) == size for spread, size in zip(spreads, sizes, strict=True)):
        return places
    return [
        [place + share for place, share in zip(*both, strict=True)]
        for both in zip(places, _shares(spreads), strict=True)
    ]


def best(scores: Scores, allowed: Sequence[set[int]], count: int) -> list[set[int]]:
    """The `count` tokens of the highest score, by text, of those that are `allowed`."""
    ranked = heapq.nsmallest(
        count,
        (
            (-score, text, place)
            for text, (one, free) in enumerate(zip(scores, allowed, strict=True))
            for place, score in enumerate(one)
            if place in free
        ),
    )
    found: list[set[int]] = [set() for _ in scores]
    for _, text, place in ranked:
        found[text].add(place)
    return found


def _fades(size: int) -> list[float]:
    return [math.exp(-place / FADES) for place in range(size)]


def _shares(values: Sequence[Sequence[float]]) -> Scores:
    """Each as a share of the sum of all."""
    total = math.fsum(value for one in values for value in one) or 1.0
    return [[value / total for value in one] for one in values]
