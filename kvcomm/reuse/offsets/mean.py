"""Mean offsets: what every token of a placeholder, or each token of a literal, has in common."""

from __future__ import annotations

import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets.base import OtherShape, check_saved, shape_of
from kvcomm.reuse.plan import Verdict


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


class MeanOffsets:
    """One offset for all tokens of a placeholder: the simplest model that learns anything."""

    def __init__(self) -> None:
        self._sum: KV | None = None  # [layers, kv_heads, 1, head_dim]
        self._tokens = 0
        self._seen = 0
        self._literal = LiteralMean()
        self._untaken: MeanOffsets | None = None

    @property
    def samples(self) -> int:
        """Observations so far."""
        return self._seen

    def verdict(self, base: KV) -> Verdict:
        """Shareable as soon as anything was seen."""
        reason = f"mean offset of {self._seen} samples"
        return Verdict(self._seen > 0, reason if self._seen else "nothing learned yet", self._seen)

    def predict(self, base: KV) -> KV:
        """The mean, at every token. Raises `ValueError` when nothing was learned."""
        if self._sum is None:
            raise ValueError("no mean offset learned yet")
        if shape_of(self._sum) != shape_of(base):
            raise OtherShape
        keys, values = self._sum.keys / self._tokens, self._sum.values / self._tokens
        keys[0], values[0] = 0, 0
        return KV(keys.expand_as(base.keys), values.expand_as(base.values))

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """The mean offset seen at each token of the literal."""
        return self._literal.predict(tokens)

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Count the tokens of one computed placeholder."""
        if len(base) == 0:
            return
        one = MeanOffsets()
        one._sum = KV(
            offset.keys.sum(dim=2, keepdim=True),
            offset.values.sum(dim=2, keepdim=True),
        )
        one._tokens, one._seen = len(base), 1
        one._literal.observe(literal)
        for model in (self, self._untaken):
            if model is not None:
                model._add(one)

    def _add(self, other: MeanOffsets) -> None:
        if other._sum is not None:
            self._sum = other._sum if self._sum is None else self._sum + other._sum
            self._tokens += other._tokens
            self._seen += other._seen
            self._literal.merge(other._literal)

    @property
    def nbytes(self) -> int:
        """Bytes of the means."""
        own = (self._sum.nbytes if self._sum else 0) + self._literal.nbytes
        return own + (self._untaken.nbytes if self._untaken else 0)

    def state(self) -> dict[str, torch.Tensor]:
        """Sums and counters."""
        if self._sum is None:
            return {}
        return {
            "keys": self._sum.keys,
            "values": self._sum.values,
            "counters": torch.tensor([self._tokens, self._seen]),
            **self._literal.state(),
        }

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace what was learned by what `state` returned.

        Raises `ValueError` for tensors that do not fit.
        """
        check_saved(tensors)
        self._sum = KV(tensors["keys"], tensors["values"])
        self._tokens, self._seen = (int(v) for v in tensors["counters"].tolist())
        if self._tokens < 1 or len(self._sum) != 1:
            raise ValueError(f"a mean over {self._tokens} tokens")
        self._literal = LiteralMean()
        self._literal.load_state(tensors)
        if self._literal.shape not in (None, shape_of(self._sum)):
            raise ValueError(f"a literal of the shape {self._literal.shape}")

    def merge(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add what another model summed up. Raises `ValueError` for tensors that do not fit."""
        if tensors:
            other = MeanOffsets()
            other.load_state(tensors)
            self._add(other)

    def take(self) -> dict[str, torch.Tensor]:
        """Sums and counters of what was observed here since the last `take`."""
        taken, self._untaken = self._untaken, MeanOffsets()
        return taken.state() if taken else {}
