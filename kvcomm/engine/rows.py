"""A row: one growing sequence in a slab, slot = position."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcomm.kv import KV, Rope, Slab


class Row:
    """Token ids and KV of one sequence. `ids` are the filled slots; nothing behind them changes.

    `exact` is false as soon as one slot was realigned: everything after it is approximate.
    """

    def __init__(self, slab: Slab, rope: Rope) -> None:
        self.slab = slab
        self.rope = rope
        self.ids: list[int] = []
        self.exact = True
        self.settled = 0

    def __len__(self) -> int:
        return len(self.ids)

    def fill(self, ids: Sequence[int], positions: Sequence[int], kv: KV) -> None:
        """Append a segment and write realigned KV at its `positions` (relative, in kv's order).

        The other positions of the segment have to be computed before anything reads them.
        """
        start = len(self.ids)
        self.ids += ids
        self.exact = False
        if not positions:
            return
        slots = torch.as_tensor(positions, device=kv.keys.device) + start
        self.slab.keys.index_copy_(2, slots, self.rope.rotate(kv.keys, slots))
        self.slab.values.index_copy_(2, slots, kv.values)

    def position_free(self, slots: Sequence[int]) -> KV:
        """The KV at `slots`, rotary embedding undone; a copy."""
        index = torch.as_tensor(slots, dtype=torch.long, device=self.slab.keys.device)
        keys = self.slab.keys.index_select(2, index)
        return KV(self.rope.unrotate(keys, index), self.slab.values.index_select(2, index))

    def truncate(self, length: int) -> None:
        """Forget the slots from `length` on."""
        if length < self.settled:
            raise ValueError(f"slots up to {self.settled} are settled, cannot cut at {length}")
        del self.ids[length:]
