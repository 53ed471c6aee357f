"""A model's paged cache, all layers of it: slots of a request are read and written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcomm.vllm.layout import Layer, Layout, same
from kvcomm.vllm.store import StoredKV


class Paged:
    """The caches of all layers, first layer first, in blocks of `block` tokens.

    Raises `ValueError` for caches that cannot be read back.
    """

    def __init__(self, layers: Sequence[Layer], block: int) -> None:
        if not layers or not same(layers):
            raise ValueError("its layers' caches are not alike")
        self.block = block
        self._layers = layers
        self._layout = Layout(layers[0])
        # A backend may cut vLLM's blocks into smaller ones.
        self._parts, rest = divmod(block, self._layout.slots)
        if rest or not self._parts:
            raise ValueError(f"blocks of {block} tokens in a cache of {self._layout.slots}")

    @property
    def device(self) -> torch.device:
        """Where the caches are."""
        return self._layers[0].kv_cache.device

    @property
    def dtype(self) -> torch.dtype:
        """What they hold."""
        return self._layers[0].kv_cache.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, KV heads (of this rank) and head dimension."""
        return len(self._layers), self._layout.heads, self._layout.dim

    def read(self, blocks: Sequence[int], start: int, stop: int) -> StoredKV:
        """The KV in the slots `[start, stop)` of a request, as copies."""
        own = self._own(blocks[: -(-stop // self.block)])
        return StoredKV(start, *self._layout.read(self._layers, own, start, stop))

    def write(
        self,
        blocks: Sequence[int],
        parts: Sequence[tuple[int, torch.Tensor, torch.Tensor]],
    ) -> None:
        """Write keys and values `[layers, heads, tokens, dim]`, each part from a slot on.

        Each layer is written once.
        """
        slots = self._slots(blocks, [(start, keys.shape[2]) for start, keys, _ in parts])
        for number, layer in enumerate(self._layers):
            keys = torch.cat([part[1][number] for part in parts], dim=1).transpose(0, 1)
            values = torch.cat([part[2][number] for part in parts], dim=1).transpose(0, 1)
            layer.impl.do_kv_cache_update(
                layer, keys.contiguous(), values.contiguous(), layer.kv_cache, slots
            )

    def _own(self, blocks: Sequence[int]) -> list[int]:
        """The cache's own blocks in vLLM's."""
        if self._parts == 1:
            return list(blocks)
        return [block * self._parts + i for block in blocks for i in range(self._parts)]

    def _slots(self, blocks: Sequence[int], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        at = torch.cat([torch.arange(start, start + tokens) for start, tokens in spans])
        slots = torch.as_tensor(blocks)[at // self.block] * self.block + at % self.block
        return slots.to(self.device)
