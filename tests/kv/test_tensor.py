"""Position-free KV: slices, concatenation, sums, checksums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.kv import KV
from tests.reuse.kvs import checksum_of, equal, joined, random_kv

pieces = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(
    lambda sizes: [random_kv(size, seed) for seed, size in enumerate(sizes)]
)


# --- algebra ---


@given(pieces)
def test_kv_is_cut_into_its_pieces(pieces: list[KV]) -> None:
    whole = joined(pieces)
    assert len(whole) == sum(map(len, pieces))
    start = 0
    for piece in pieces:
        assert equal(whole.slice(start, start + len(piece)), piece)
        start += len(piece)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_take_puts_tokens_in_the_order_asked_for(positions: list[int]) -> None:
    kv = random_kv(6)
    taken = kv.take(positions)
    assert len(taken) == len(positions)
    for i, position in enumerate(positions):
        assert equal(taken.slice(i, i + 1), kv.slice(position, position + 1))
    assert equal(kv.take(range(6)), kv)


def test_a_slice_is_a_view_and_take_a_copy() -> None:
    kv = random_kv(4)
    kv.slice(1, 3).values[:] = 7
    assert kv.values[:, :, 1:3].eq(7).all()
    kv.take([0]).keys[:] = 7
    assert not kv.keys[:, :, 0].eq(7).any()


def test_sums_and_differences() -> None:
    base, offset = random_kv(3, 1), random_kv(3, 2)
    assert torch.equal((base + offset).keys, base.keys + offset.keys)
    assert torch.equal((base - offset).values, base.values - offset.values)
    assert equal((base + offset) - base, offset, 1e-6)
    same, expected = base, base - offset
    same -= offset
    assert same is base
    assert equal(base, expected, 0.0)


def test_only_what_has_one_shape_belongs_together() -> None:
    for combine in (KV.__add__, KV.__sub__, KV.__isub__):
        with pytest.raises(ValueError, match=r"\(3, 2, 4, 4\) and \(3, 2, 1, 4\)"):
            combine(random_kv(4), random_kv(1))
    for keys, values in (((1, 1, 2, 3), (1, 1, 3, 3)), ((2, 3), (2, 3))):
        with pytest.raises(ValueError, match=r"one shape \[layers, kv_heads, tokens, head_dim\]"):
            KV(torch.zeros(keys), torch.zeros(values))


# --- checksums ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_checksum_changes_with_any_bit_and_only_then(dtype: torch.dtype) -> None:
    kv = random_kv(5, 1, dtype)
    before = checksum_of(kv)
    assert before == checksum_of(random_kv(5, 1, dtype))
    assert before == checksum_of(kv.slice(0, 5))
    for part in (kv.keys, kv.values):
        part[1, 1, 2, 3] = -part[1, 1, 2, 3]
        assert checksum_of(kv) != before
        part[1, 1, 2, 3] = -part[1, 1, 2, 3]
    assert checksum_of(kv) == before
    assert checksum_of(random_kv(0, 1, dtype)) == checksum_of(random_kv(0, 2, dtype))
