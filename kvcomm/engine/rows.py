"""A row: one growing sequence in a slab, slot = position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvcomm.engine.clock import done_at
from kvcomm.kv import KV, Rope, Slab


@dataclass(frozen=True, eq=False)
class Tail:
    """The ids of a row from slot `start` on, and the KV of those slots that were written over."""

    start: int
    ids: list[int]
    keys: torch.Tensor  # rotated
    values: torch.Tensor


class Row:
    """Token ids and KV of one sequence. `ids` are the filled slots; nothing behind them changes.

    Everything from the first realigned slot on is approximate: `exact_length` slots are not.
    """

    def __init__(self, slab: Slab, rope: Rope) -> None:
        self.slab = slab
        self.rope = rope
        self.ids: list[int] = []
        self.settled = 0
        self._realigned_from: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def exact(self) -> bool:
        """Whether everything in the row was computed from computed KV."""
        return self._realigned_from is None

    @property
    def exact_length(self) -> int:
        """Leading slots whose KV was computed from computed KV."""
        return len(self.ids) if self._realigned_from is None else self._realigned_from

    def fill(self, ids: Sequence[int], positions: Sequence[int], kv: KV) -> float:
        """Append a segment and write realigned KV at its `positions` (relative, in kv's order).

        The other positions of the segment have to be computed before anything reads them. Returns
        the seconds that rotating took.
        """
        start = len(self.ids)
        self.ids += ids
        if not positions:
            return 0.0
        if self._realigned_from is None:
            self._realigned_from = start + min(positions)
        slots = torch.as_tensor(positions, device=kv.keys.device) + start
        began = done_at(kv.keys.device)
        keys = self.rope.rotate(kv.keys, slots)
        rotating = done_at(kv.keys.device) - began
        self.slab.keys.index_copy_(2, slots, keys)
        self.slab.values.index_copy_(2, slots, kv.values)
        return rotating

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
        if self._realigned_from is not None and length <= self._realigned_from:
            self._realigned_from = None

    def set_aside(self, start: int, ids: Sequence[int]) -> Tail:
        """Have `ids` stand in the slots from `start` on, still to be computed; see `put_back`."""
        over = slice(start, min(start + len(ids), len(self.ids)))
        tail = Tail(
            start,
            self.ids[start:],
            self.slab.keys[:, :, over].clone(),
            self.slab.values[:, :, over].clone(),
        )
        self.ids[start:] = ids
        return tail

    def put_back(self, tail: Tail) -> None:
        """The row as it was before `set_aside`."""
        over = slice(tail.start, tail.start + tail.keys.shape[2])
        self.slab.keys[:, :, over] = tail.keys
        self.slab.values[:, :, over] = tail.values
        self.ids[tail.start :] = tail.ids
