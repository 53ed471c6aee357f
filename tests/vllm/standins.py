"""Attention layers with paged caches of several layouts, as backends have them, without vLLM."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

HEADS, SLOTS, DIM = 2, 8, 6

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def plain(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> None:
    """Keys and values side by side."""
    block, slot, dim = at // SLOTS, at % SLOTS, keys.shape[-1]
    cache[block, :, slot, :dim] = keys
    cache[block, :, slot, dim:] = values


def apart(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> None:
    """All keys of a head before its values, and keys by dimension first."""
    blocks, heads, slots, content = cache.shape
    dim = content // 2
    block, slot = at // SLOTS, at % SLOTS
    flat = cache.view(blocks, heads, 2, slots * dim)
    flat[:, :, 0].view(blocks, heads, dim, slots)[block, :, :, slot] = keys
    flat[:, :, 1].view(blocks, heads, slots, dim)[block, :, slot, :] = values


def pairs(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> None:
    """Neighbouring slots of a value interleaved."""
    blocks, heads, slots, content = cache.shape
    dim = content // 2
    block, slot = at // SLOTS, at % SLOTS
    flat = cache.view(blocks, heads, 2, slots * dim)
    flat[:, :, 0].view(blocks, heads, slots, dim)[block, :, slot, :] = keys
    flat[:, :, 1].view(blocks, heads, slots // 2, dim, 2)[block, :, slot // 2, :, slot % 2] = values


def halved(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> None:
    """Scaled, as fp8 caches do."""
    plain(keys / 2, values / 2, cache, at)


def lossy(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> None:
    """Values over keys."""
    plain(keys, values, cache, at)
    cache[..., :2] = cache[..., 2:4]


def nowhere(
    keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, at: torch.Tensor
) -> None:
    """In another block than was said."""
    plain(keys, values, cache, at - SLOTS)


class Impl:
    head_size = DIM

    def __init__(self, write: Write) -> None:
        self.write = write
        self.calls = 0

    def do_kv_cache_update(
        self, layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any
    ) -> None:
        assert key.is_contiguous()
        assert value.is_contiguous()
        self.calls += 1
        self.write(key, value, kv_cache, slot_mapping)


def layer(
    write: Write = plain,
    blocks: int = 12,
    dtype: torch.dtype = torch.float32,
    *,
    slots_first: bool = False,
) -> Any:
    """A layer. `slots_first`: its memory has slots before heads."""
    if slots_first:
        cache = torch.zeros(blocks, SLOTS, HEADS, 2 * DIM, dtype=dtype).transpose(1, 2)
    else:
        cache = torch.zeros(blocks, HEADS, SLOTS, 2 * DIM, dtype=dtype)
    return SimpleNamespace(kv_cache=cache, impl=Impl(write))
