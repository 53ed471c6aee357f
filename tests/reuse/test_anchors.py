"""The anchor pool against the paper's formulas written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets import FAMILIES, AnchorPool, OffsetModel, Offsets
from kvcomm.reuse.offsets.anchors import CAPACITY
from kvcomm.reuse.policy import Anchors
from tests.reuse import anchor_reference as reference
from tests.reuse.kvs import checksum_of, equal, joined, random_kv
from tests.reuse.offsets_conformance import OffsetModelContract

LITERAL = 3


class TestContract(OffsetModelContract):
    def make(self) -> OffsetModel:
        return AnchorPool()

    def same_knowledge(self, model: OffsetModel, other: OffsetModel) -> None:
        assert isinstance(model, AnchorPool)
        assert isinstance(other, AnchorPool)
        found, expected = (sorted(checksum_of(a.base) for a in p.anchors) for p in (model, other))
        assert found == expected


def pool_of(*bases: KV, **options: float) -> AnchorPool:
    pool = AnchorPool(**options)
    for index, base in enumerate(bases):
        pool.observe(base, random_kv(len(base), 1000 + index), random_kv(LITERAL, 2000 + index))
    return pool


# --- verdict ---


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.1, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.9, 1.0])
def test_the_entropy_test(distance: float, gamma: float) -> None:
    """Over values and the first tokens only."""
    base = random_kv(6, 9)
    near = [
        KV(random_kv(6, i).keys, base.values + distance * (1 + i) * random_kv(6, 20 + i).values)
        for i in range(4)
    ]
    anchors = [joined([kv, random_kv(i, 50)]) for i, kv in enumerate(near)]
    pool = pool_of(*anchors, gamma=gamma)
    verdict = pool.predictability(base)
    expected = reference.entropy(base, anchors)
    limit = gamma * math.log(4)
    if math.isclose(expected, limit, abs_tol=1e-4):
        return  # all equal, γ = 1: rounding decides
    assert verdict.shareable == (expected <= limit)
    assert f"entropy {expected:.3f}, limit {limit:.3f}, 4 anchors" in verdict.reason
    assert verdict.samples == 4
    assert any(anchor.uses for anchor in pool.anchors) == verdict.shareable


def test_two_anchors_must_be_as_long() -> None:
    pool = pool_of(random_kv(5, 1), random_kv(9, 2), random_kv(9, 3))
    assert pool.predictability(random_kv(9, 4)).samples == 2
    pool = pool_of(random_kv(5, 1), random_kv(9, 2))
    for tokens, reason in ((9, "1 anchor of"), (10, "0 anchors of")):
        refused = pool.predictability(random_kv(tokens, 4))
        assert not refused.shareable
        assert refused.reason == f"{reason} at least {tokens} tokens, needs 2"
    with pytest.raises(ValueError, match="no anchor of at least 10 tokens"):
        pool.predict(random_kv(10, 4))


@pytest.mark.parametrize(("distance", "uses"), [(2.5, [1, 0]), (2.0, [1, 1])])
def test_most_of_the_weight_is_nine_tenths(distance: float, uses: list[int]) -> None:
    base, other = random_kv(6, 9), random_kv(6, 9)
    other.values[1, 0, 2, 3] += distance  # softmax(0, −2.5) = 0.924, softmax(0, −2) = 0.881
    pool = pool_of(base, other, gamma=1.0)
    assert pool.predictability(base).shareable
    assert [anchor.uses for anchor in pool.anchors] == uses


# --- predictions ---


@pytest.mark.parametrize("lengths", [(6,), (6, 6, 6), (6, 9, 7), (4, 6, 8, 5)])
def test_offsets_are_the_papers_weighted_means(lengths: tuple[int, ...]) -> None:
    pool, base = pool_of(*(random_kv(n, i) for i, n in enumerate(lengths))), random_kv(6, 99)
    usable = [anchor for anchor in pool.anchors if len(anchor.base) >= 6]
    offset, literal = pool.predict(base), pool.predict_literal(base, LITERAL)
    for name in ("keys", "values"):
        own = getattr(base, name)
        bases = [getattr(anchor.base, name) for anchor in usable]
        offsets = [getattr(anchor.offset, name) for anchor in usable]
        literals = [getattr(anchor.literal, name) for anchor in usable]
        expected = reference.placeholder_offset(own, bases, offsets)
        torch.testing.assert_close(getattr(offset, name), expected, rtol=0, atol=1e-5)
        expected = reference.literal_offset(own, bases, literals)
        torch.testing.assert_close(getattr(literal, name), expected, rtol=0, atol=1e-5)


# --- eviction ---


def test_above_capacity_the_least_used_of_the_five_oldest_goes() -> None:
    pool = pool_of(*(random_kv(2, i) for i in range(8)), capacity=8)
    for anchor, uses in zip(pool.anchors, [3, 2, 4, 2, 9, 0, 0, 0], strict=True):
        anchor.uses = uses
    gone, kept = pool.anchors[1], list(pool.anchors)
    pool.observe(random_kv(2, 8), random_kv(2, 9), random_kv(LITERAL))
    assert pool.anchors[:-1] == [anchor for anchor in kept if anchor is not gone]
    assert pool.anchors[-1].uses == 0


@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_a_new_anchor_is_never_the_one_that_goes(capacity: int) -> None:
    pool = pool_of(*(random_kv(2, i) for i in range(capacity)), capacity=capacity)
    for anchor in pool.anchors:
        anchor.uses = 5
    pool.observe(random_kv(2, 77), random_kv(2, 78), random_kv(LITERAL))
    assert equal(pool.anchors[-1].base, random_kv(2, 77))


# --- size and merge ---


def test_bytes_are_those_of_base_offset_and_literal() -> None:
    a_token = 2 * 3 * 2 * 4 * 4  # keys and values, layers, heads, dimensions, float32
    assert pool_of(random_kv(6, 1), random_kv(2, 2)).nbytes == (6 + 6 + 3 + 2 + 2 + 3) * a_token


def test_a_merged_pool_is_that_of_one_who_saw_the_others_afterwards() -> None:
    mine, theirs = ([random_kv(5, seed + i) for i in range(14)] for seed in (0, 100))
    pool, other, one = pool_of(*mine), pool_of(*theirs), pool_of(*mine)
    for index in (0, 2):  # used ones stay
        for pools in (pool, one):
            pools.anchors[index].uses = 3
    pool.merge(other.state())
    for anchor in other.anchors:
        one.observe(anchor.base, anchor.offset, anchor.literal)
    assert len(pool.anchors) == CAPACITY
    assert [checksum_of(a.base) for a in pool.anchors] == [checksum_of(a.base) for a in one.anchors]
    assert pool.anchors[0].uses == 3


def test_an_anchor_that_is_also_kept_to_be_taken_is_counted_once() -> None:
    pool, plain = AnchorPool(), pool_of(random_kv(5, 1))
    pool.take()
    pool.observe(random_kv(5, 1), random_kv(5, 1000), random_kv(LITERAL, 2000))
    assert pool.nbytes == plain.nbytes


def test_a_literal_of_another_length_says_nothing_of_this_one() -> None:
    """What fills a literal may change from day to day, and its length with it."""
    pool, same = AnchorPool(), AnchorPool()
    for i, tokens in enumerate((2, 3, 0, 3)):
        sample = random_kv(5, i), random_kv(5, 10 + i), random_kv(tokens, 20 + i)
        pool.observe(*sample)
        if tokens == 3:
            same.observe(*sample)
    base = random_kv(4, 99)
    assert equal(pool.predict_literal(base, 3), same.predict_literal(base, 3))
    assert len(pool.predict_literal(base, 2)) == 2
    with pytest.raises(ValueError, match="no anchor in front of a literal of 4 tokens"):
        pool.predict_literal(base, 4)


def test_a_family_may_say_with_which_numbers() -> None:
    offsets = Offsets(FAMILIES)
    family = Anchors(gamma=0.1, capacity=40).family
    pool = offsets.of(family, "template", "solver_2", 3)
    assert isinstance(pool, AnchorPool)
    assert (pool.gamma, pool.capacity) == (0.1, 40)
    assert offsets.of(family, "template", "solver_2", 4) is not pool  # by number, as all anchors
    assert offsets.of("anchors", "template", "solver_2", 3) is not pool
