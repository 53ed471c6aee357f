"""Where a layer's cache keeps what is written to it, found by writing numbers.

Backends differ in how a block holds keys and values: side by side, head by head, transposed, in
pairs. All of them can write, so a `Layout` writes every number once through the backend, into two
blocks of its own with the cache's strides, and sees where it went. That must be a permutation;
a cache that scales or packs what it is given (fp8) is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

# Digits up to this base are exact in every dtype with at least 8 bits of precision.
BASE = 128
# The most bytes that a trial takes.
MOST = 256 << 20


Kept = tuple[torch.Tensor, torch.Tensor]


class Backend(Protocol):
    """What is used of a backend's implementation."""

    head_size: int

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Write keys and values `[tokens, heads, dim]` to the slots of a cache."""


class Layer(Protocol):
    """What is used of an attention layer. `kv_cache` is `[blocks, heads, slots, content]`."""

    kv_cache: torch.Tensor
    impl: Backend


class Layout:
    """Reads and writes a layer's cache, whatever it looks like inside. One serves equal layers.

    Raises `ValueError` for a cache that does not keep what is written to it.
    """

    def __init__(self, layer: Layer) -> None:
        cache = layer.kv_cache
        if cache.dim() != 4 or not cache.is_floating_point():
            raise ValueError(f"a cache of shape {tuple(cache.shape)} and {cache.dtype}")
        _, self.heads, self.slots, content = cache.shape
        self.dim = layer.impl.head_size
        self._where = self._learn(layer, self.heads * self.slots * content).to(cache.device)

    def _learn(self, layer: Layer, places: int) -> torch.Tensor:
        """The place in a flat block of (key or value, slot, head, dimension), all in one row."""
        cache = layer.kv_cache
        size = (2, *cache.shape[1:])
        extent = 1 + sum((n - 1) * step for n, step in zip(size, cache.stride(), strict=True))
        if extent * cache.element_size() > MOST:
            raise ValueError("its blocks do not lie one after the other")
        room = torch.zeros(extent, dtype=cache.dtype, device=cache.device)
        scratch = room.as_strided(size, cache.stride())
        count = 2 * self.slots * self.heads * self.dim
        numbers = torch.arange(count).view(2, self.slots, self.heads, self.dim)
        # The second block: that a block's number counts is found out, too.
        slots = torch.arange(self.slots, device=cache.device) + self.slots
        found = torch.zeros(places, dtype=torch.long)
        place, hit = 1, torch.zeros(places, dtype=torch.bool)
        while place <= count:
            keys, values = (numbers // place % BASE + 1).to(cache.device, cache.dtype)
            room.zero_()
            layer.impl.do_kv_cache_update(
                layer, keys.contiguous(), values.contiguous(), scratch, slots
            )
            if bool(scratch[0].any()):
                raise ValueError("it writes to other blocks than it is told to")
            raw = scratch[1].reshape(-1).double().cpu()
            digits = raw.round().long()
            if not torch.equal(digits.double(), raw):
                raise ValueError("it does not keep what is written to it")
            hit = digits > 0
            found += torch.where(hit, (digits - 1) * place, 0)
            place *= BASE
        at = torch.nonzero(hit)[:, 0]
        if len(at) != count or not torch.equal(found[at].sort().values, numbers.flatten()):
            raise ValueError("it is no permutation of what is written to it")
        where = torch.empty(count, dtype=torch.long)
        where[found[at]] = at
        return where

    def read(self, layers: Sequence[Layer], blocks: Sequence[int], start: int, stop: int) -> Kept:
        """Keys and values of the slots `[start, stop)`, `[layers, heads, tokens, dim]` each.

        They are copies. `blocks` are those of the cache, from the first slot on.
        """
        cache, n = layers[0].kv_cache, self.slots
        first, last = start // n, (stop - 1) // n + 1
        index = torch.as_tensor(blocks[first:last], device=cache.device)
        part = slice(start - first * n, stop - first * n)
        shape = (2, len(layers), self.heads, stop - start, self.dim)
        keys, values = both = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        for number, layer in enumerate(layers):
            raw = layer.kv_cache.index_select(0, index).reshape(len(index), -1)
            out = raw.index_select(1, self._where).view(len(index), 2, n, self.heads, self.dim)
            out = out.permute(1, 3, 0, 2, 4).reshape(2, self.heads, -1, self.dim)
            both[:, number] = out[:, :, part]
        return keys, values


def same(layers: Sequence[Layer]) -> bool:
    """Whether what is learned of one layer holds for all of them."""
    kinds = {
        (type(layer.impl), cache.dtype, cache.device, tuple(cache.shape), cache.stride())
        for layer in layers
        for cache in (layer.kv_cache,)
    }
    return len(kinds) == 1
