"""What an offset model promises, and the book of all models of a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from kvcomm.kv import KV
from kvcomm.reuse.plan import Verdict


class OffsetModel(Protocol):
    """Learns and predicts the offsets of one placeholder of one template.

    An offset is true KV in the consumer's context minus base KV, both position-free, `[layers,
    kv_heads, tokens, head_dim]`. A model also learns the offset of the literal that follows the
    placeholder. `verdict` and `predict` change nothing but usage counters; `observe` takes
    ownership of its arguments. Layer 0 needs no offset: predictions are zero there.
    """

    def verdict(self, base: KV) -> Verdict:
        """Whether the offset of a placeholder with this base KV can be predicted, and why."""

    def predict(self, base: KV) -> KV:
        """The offset of the placeholder. Raises `ValueError` when nothing was learned."""

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """The offset of the `tokens` of the literal behind a placeholder with this base KV."""

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Learn from one computed placeholder and the literal behind it."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything learned, as named tensors."""

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace what was learned by what `state` returned."""

    @property
    def samples(self) -> int:
        """How many observations the model can use."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""


@dataclass
class Offsets:
    """One offset model per (template fingerprint, placeholder index), made when first needed."""

    make: Callable[[], OffsetModel]
    models: dict[tuple[str, int], OffsetModel] = field(default_factory=dict)

    def of(self, template: str, placeholder: int) -> OffsetModel:
        """The model of one placeholder."""
        key = (template, placeholder)
        if key not in self.models:
            self.models[key] = self.make()
        return self.models[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all models."""
        return sum(model.nbytes for model in self.models.values())
