"""Watching attention: how much some tokens of a sequence attend to some slots of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Watch:
    """The attention of the queries from slot `begin` on to `slots`, which stand before them.

    For every layer and head the largest weight of any query is kept: `[layers, heads, slots]`.
    Weights are normalised over all that a query sees, as in the model's own attention. They are
    computed for these queries only.
    """

    def __init__(self, slots: Sequence[int], begin: int) -> None:
        self.slots = slots
        self.begin = begin
        self._largest: dict[int, torch.Tensor] = {}
        # What all layers of one forward share, by window.
        self._masks: dict[int | None, tuple[list[int], torch.Tensor]] = {}
        self._positions: Sequence[int] = ()

    def see(
        self,
        layer: int,
        positions: Sequence[int],
        query: torch.Tensor,
        keys: torch.Tensor,
        window: int | None,
        scaling: float | None,
    ) -> None:
        """Count queries `[heads, n, head_dim]` at `positions`, over keys of all slots up to theirs.

        `keys` are `[kv_heads, slots, head_dim]`, rotated. Layer 0 does not count: its KV depends on
        nothing before.
        """
        if not layer or positions[-1] < self.begin:
            return
        heads, _, dim = query.shape
        mine, mask = self._seen(positions, window, keys)
        grouped = query[:, mine].view(keys.shape[0], -1, dim)  # query heads of a KV head together
        weights = grouped @ keys.mT * (dim**-0.5 if scaling is None else scaling)
        weights = weights.view(heads, len(mine), -1).masked_fill(mask, float("-inf"))
        found = weights.softmax(dim=-1, dtype=torch.float32)[:, :, self.slots].amax(dim=1)
        known = self._largest.get(layer)
        self._largest[layer] = found if known is None else torch.maximum(known, found)

    def _seen(
        self, positions: Sequence[int], window: int | None, keys: torch.Tensor
    ) -> tuple[list[int], torch.Tensor]:
        """Which tokens of a forward are queries, and what is hidden from each of them."""
        if positions is not self._positions:
            self._positions, self._masks = positions, {}
        if window not in self._masks:
            mine = [number for number, at in enumerate(positions) if at >= self.begin]
            at = torch.as_tensor([positions[i] for i in mine], device=keys.device)[:, None]
            slot = torch.arange(keys.shape[1], device=keys.device)
            mask = slot > at if window is None else (slot > at) | (slot <= at - window)
            self._masks[window] = mine, mask
        return self._masks[window]

    def total(self) -> list[float]:
        """The weights of every slot, summed over layers and heads."""
        if not self._largest:
            return [0.0] * len(self.slots)
        total = torch.stack([largest.sum(dim=0) for largest in self._largest.values()]).sum(dim=0)
        return [float(value) for value in total.tolist()]
