"""The two shapes KV comes in: position-free pieces, and the preallocated buffer of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class KV:
    """Position-free keys and values (or offsets of them), `[layers, kv_heads, tokens, head_dim]`.

    Position-free: the rotary embedding is undone on the keys. Slices are views.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.dim() != 4:
            raise ValueError(
                f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)} must share "
                "one shape [layers, kv_heads, tokens, head_dim]"
            )

    def __len__(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def slice(self, start: int, stop: int) -> KV:
        """Tokens `start` to `stop`, as a view."""
        return KV(self.keys[:, :, start:stop], self.values[:, :, start:stop])

    def take(self, positions: Sequence[int]) -> KV:
        """The tokens at `positions`, in that order, as a copy."""
        index = torch.as_tensor(positions, dtype=torch.long, device=self.keys.device)
        return KV(self.keys.index_select(2, index), self.values.index_select(2, index))

    def __add__(self, other: KV) -> KV:
        self._check_shape(other)
        return KV(self.keys + other.keys, self.values + other.values)

    def __sub__(self, other: KV) -> KV:
        self._check_shape(other)
        return KV(self.keys - other.keys, self.values - other.values)

    def __isub__(self, other: KV) -> KV:
        """In place: the tensors of a slice are those of the whole."""
        self._check_shape(other)
        self.keys.sub_(other.keys)
        self.values.sub_(other.values)
        return self

    def _check_shape(self, other: KV) -> None:
        # Broadcasting would spread one token over all.
        if self.keys.shape != other.keys.shape:
            raise ValueError(
                f"KV of shapes {tuple(self.keys.shape)} and {tuple(other.keys.shape)} differ"
            )

    def to(self, device: torch.device) -> KV:
        """The same on another device."""
        return KV(self.keys.to(device), self.values.to(device))


class KVBuffer:
    """Preallocated KV of one sequence, keys rotated: slot = position in the prompt.

    `keys` and `values` are `[layers, kv_heads, capacity, head_dim]`. Slots are written in any
    order, settled ones never again. A buffer may outlive its sequence in the prefix cache.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, kv_heads, capacity, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes reserved, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def shrink(self, length: int) -> None:
        """Keep the first `length` slots and give the others' memory back.

        One tensor after the other, because what is let go of here is what was short.
        """
        self.keys = self.keys[:, :, :length].clone(memory_format=torch.contiguous_format)
        self.values = self.values[:, :, :length].clone(memory_format=torch.contiguous_format)

    def copy_from(self, other: KVBuffer, start: int, stop: int) -> None:
        """Copy slots `start` to `stop` of another buffer into the same slots of this one."""
        self.keys[:, :, start:stop] = other.keys[:, :, start:stop]
        self.values[:, :, start:stop] = other.values[:, :, start:stop]
