"""The mean offset of a literal."""

from __future__ import annotations

import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets.base import shape_of


class LiteralMean:
    """The mean offset of a literal, token by token: constant memory."""

    def __init__(self) -> None:
        self._sum: KV | None = None
        self._count = 0

    def observe(self, literal: KV) -> None:
        """Count one more computed literal. One of another length starts over."""
        if self._sum is None or len(self._sum) != len(literal):
            self._sum, self._count = literal, 1
        else:
            self._sum, self._count = self._sum + literal, self._count + 1

    def predict(self, tokens: int) -> KV:
        """The mean so far, zero in layer 0. Raises `ValueError` for an unknown length."""
        if self._sum is None or len(self._sum) != tokens:
            raise ValueError(f"no offset of a literal of {tokens} tokens learned yet")
        keys, values = self._sum.keys / self._count, self._sum.values / self._count
        keys[0], values[0] = 0, 0
        return KV(keys, values)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Layers, KV heads and head dimension; None before a literal was seen."""
        return shape_of(self._sum) if self._sum else None

    @property
    def nbytes(self) -> int:
        """Bytes of the mean."""
        return self._sum.nbytes if self._sum else 0

    def state(self) -> dict[str, torch.Tensor]:
        """Sum and count."""
        if self._sum is None:
            return {}
        return {
            "literal.keys": self._sum.keys.contiguous(),
            "literal.values": self._sum.values.contiguous(),
            "literal.count": torch.tensor(self._count),
        }

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace the mean by a saved one."""
        if "literal.count" in tensors:
            self._sum = KV(tensors["literal.keys"], tensors["literal.values"])
            self._count = int(tensors["literal.count"])
            if self._count < 1:
                raise ValueError(f"a literal's mean over {self._count} samples")

    def merge(self, other: LiteralMean) -> None:
        """Count what another one counted. One of another length starts over."""
        if other._sum is None:
            return
        if self._sum is None or len(self._sum) != len(other._sum):
            self._sum, self._count = other._sum, other._count
        else:
            self._sum, self._count = self._sum + other._sum, self._count + other._count
