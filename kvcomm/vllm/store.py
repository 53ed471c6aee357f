"""What a worker keeps: entries of KV as they were computed, by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvcomm.kv import KV
from kvcomm.vllm.orders import Fill, Model
from kvcomm.vllm.ropes import TableRope

# What an offset model predicts for position-free KV, or for a literal of so many tokens behind it.
Predict = Callable[[Model, KV, int | None], KV]


@dataclass(frozen=True, eq=False)
class StoredKV:
    """Rotated keys and values `[layers, heads, tokens, dim]` that stood at `start` and behind it.

    They have the cache's dtype: what stays where it was is copied bit by bit.
    """

    start: int
    keys: torch.Tensor
    values: torch.Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]

    def slice(self, origin: int, tokens: int) -> StoredKV:
        """Some of its tokens, as views."""
        part = slice(origin, origin + tokens)
        return StoredKV(self.start + origin, self.keys[:, :, part], self.values[:, :, part])

    def to(self, device: torch.device) -> StoredKV:
        """The same on another device."""
        return StoredKV(self.start, self.keys.to(device), self.values.to(device))

    def free(self, rope: TableRope) -> KV:
        """Position-free, in float32."""
        return KV(rope.unrotate(self.keys, self.start), self.values.float())


class Store:
    """Entries by number, on `device`. What has left it may still be in use."""

    def __init__(self, device: torch.device, rope: TableRope) -> None:
        self.device = device
        self._rope = rope
        self._entries: dict[int, StoredKV] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> StoredKV:
        return self._entries[number]

    def put(self, number: int, entry: StoredKV) -> None:
        """Keep an entry."""
        keys, values = (_moved(tensor, self.device) for tensor in (entry.keys, entry.values))
        self._entries[number] = StoredKV(entry.start, keys, values)

    def drop(self, number: int) -> None:
        """Let go of an entry. One that is not there is no error."""
        self._entries.pop(number, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(e.keys.nbytes + e.values.nbytes for e in self._entries.values())

    def filled(
        self, fill: Fill, device: torch.device, predict: Predict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values for the slots of a fill, in the cache's dtype, on `device`.

        Raises `KeyError` for an entry that is not here, `ValueError` where nothing is predicted.
        """
        whole = self[fill.entry]
        part = whole.slice(fill.origin, fill.stop - fill.start).to(device)
        if fill.model is None and part.start == fill.start:
            return part.keys, part.values
        dtype = part.keys.dtype
        if fill.model is None:
            return self._rope.move(part.keys, part.start, fill.start).to(dtype), part.values
        kv = part.free(self._rope)
        kv = kv + self._offset(fill, fill.model, kv, device, predict)
        return self._rope.rotate(kv.keys, fill.start).to(dtype), kv.values.to(dtype)

    def _offset(
        self, fill: Fill, model: Model, kv: KV, device: torch.device, predict: Predict
    ) -> KV:
        """What is added to a fill's KV."""
        whole = self[fill.entry]
        if fill.behind is not None:
            behind = self[fill.behind].to(device).free(self._rope)
            offset = predict(model, behind, len(whole))
        elif model[0].startswith("linear"):
            offset = predict(model, kv, None)  # token by token
        else:
            offset = predict(model, whole.to(device).free(self._rope), None)
        if len(offset) != len(kv):
            offset = offset.slice(fill.origin, fill.origin + len(kv))
        if fill.scale != 1:
            offset = KV(offset.keys * fill.scale, offset.values * fill.scale)
        return offset


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device. What a GPU is to read again is pinned."""
    if device.type == "cpu" and tensor.device.type == "cuda":
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
    return tensor.to(device)
