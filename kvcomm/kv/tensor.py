"""The two shapes KV comes in: position-free pieces, and the preallocated buffer of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class KV:
    """Position-free keys and values (or offsets of them), `[layers, kv_heads, tokens, head_dim]`.

    Position-free: the rotary embedding is undone on the keys. Slices are views. `spread`, `[2,
    layers, tokens]`, is there where they are the mean of several contexts: the sum of squared
    distances from it, for keys and for values.
    """

    keys: torch.Tensor
    values: torch.Tensor
    spread: torch.Tensor | None = None

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
        """Bytes of all of it."""
        spread = 0 if self.spread is None else self.spread.nbytes
        return self.keys.nbytes + self.values.nbytes + spread

    def with_one_more(self, other: KV, contexts: int) -> KV:
        """The mean of `contexts` contexts and another one, in float32, with its spread.

        Both are updated as they go (Welford): no context is kept.
        """
        means, spreads = [], []
        for number, (old, new) in enumerate(((self.keys, other.keys), (self.values, other.values))):
            wide = torch.promote_types(old.dtype, torch.float32)
            gap = new.to(wide) - old.to(wide)
            mean = old.to(wide) + gap / (contexts + 1)
            more = (gap * (new.to(wide) - mean)).sum(dim=(1, 3))  # [layers, tokens]
            means.append(mean)
            spreads.append(more if self.spread is None else self.spread[number] + more)
        return KV(means[0], means[1], torch.stack(spreads))

    def spreads(self) -> list[float]:
        """How much each token's KV differs between contexts: its part of each layer's spread."""
        if self.spread is None:
            return []
        share = self.spread / self.spread.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return [float(value) for value in share.sum(dim=(0, 1)).tolist()]

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
        spread = None if self.spread is None else self.spread.to(device)
        return KV(self.keys.to(device), self.values.to(device), spread)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, by name."""
        named = {"keys": self.keys, "values": self.values, "spread": self.spread}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


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
