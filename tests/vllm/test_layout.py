"""Caches of several layouts are read back as they were written."""

import pytest
import torch

from kvcomm.vllm.layout import Layout
from kvcomm.vllm.paged import Paged
from tests.vllm.standins import (
    DIM,
    HEADS,
    SLOTS,
    Write,
    apart,
    halved,
    layer,
    lossy,
    nowhere,
    pairs,
    plain,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("write", [plain, apart, pairs])
def test_what_was_written_is_read_bit_by_bit(write: Write, dtype: torch.dtype) -> None:
    one = layer(write, dtype=dtype)
    before = one.kv_cache.clone()
    layout = Layout(one)
    assert torch.equal(one.kv_cache, before), "the cache itself is let alone"
    keys, values = torch.randn(2, 27, HEADS, DIM).to(dtype)
    blocks = [7, 2, 9, 4]
    at = torch.arange(27)
    slots = torch.tensor(blocks)[at // SLOTS] * SLOTS + at % SLOTS
    one.impl.do_kv_cache_update(one, keys, values, one.kv_cache, slots)
    for start, stop in ((0, 27), (5, 6), (8, 16), (3, 25)):
        found = layout.read([one], blocks, start, stop)
        assert torch.equal(found[0][0], keys[start:stop].transpose(0, 1))
        assert torch.equal(found[1][0], values[start:stop].transpose(0, 1))


def test_memory_may_have_another_order_than_the_shape() -> None:
    one = layer(plain, slots_first=True)
    layout = Layout(one)
    keys, values = torch.randn(2, SLOTS, HEADS, DIM)
    one.impl.do_kv_cache_update(one, keys, values, one.kv_cache, torch.arange(SLOTS) + SLOTS)
    found, _ = layout.read([one], [1], 0, SLOTS)
    assert torch.equal(found[0], keys.transpose(0, 1))


@pytest.mark.parametrize("write", [halved, lossy, nowhere])
def test_what_is_no_permutation_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="it "):
        Layout(layer(write))


def test_a_cache_of_bytes_is_refused() -> None:
    one = layer()
    one.kv_cache = one.kv_cache.to(torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        Layout(one)


def test_layers_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        Paged([layer(), layer(dtype=torch.bfloat16), layer(slots_first=True)], SLOTS)
    with pytest.raises(ValueError, match="alike"):
        Paged([], SLOTS)
    with pytest.raises(ValueError, match="blocks of 12"):
        Paged([layer()], 12)


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_are_written_with_one_call_a_layer(parts: int) -> None:
    layers = [layer(apart), layer(apart)]
    block = SLOTS * parts
    paged = Paged(layers, block)
    calls = layers[0].impl.calls
    keys, values = torch.randn(2, 2, HEADS, 10, DIM)
    blocks = [5, 1, 3] if parts == 1 else [5, 1]
    at = (2, keys[:, :, :4], values[:, :, :4]), (9, keys[:, :, 4:], values[:, :, 4:])
    paged.write(blocks, at)
    assert layers[0].impl.calls == calls + 1
    for start, part in ((2, slice(0, 4)), (9, slice(4, 10))):
        stop = start + part.stop - part.start
        found = paged.read(blocks, start, stop)
        assert found.start == start
        assert torch.equal(found.keys, keys[:, :, part])
        assert torch.equal(found.values, values[:, :, part])
