"""Linear layers of a few tokens on a CPU: the same product, computed the other way round.

In float32 MKL is slow at `x Wᵀ` for 2 to 4 rows, and for up to 64 where W is as tall as a
vocabulary; `(W xᵀ)ᵀ` is faster there. Rows that decode together are that few. Measured on two cores
of an AMD EPYC with SmolLM2, 512-token rows (`kvcomm bench throughput`): 2 rows 27 → 33 tokens/s, 8
rows 74 → 93. For more rows of the other layers the result, which lies across, costs more than is
gained: with 64 everywhere 8 rows came to 61.
"""

from __future__ import annotations

import torch
from torch import nn

MOST = 4
TALL, MOST_TALL = 8192, 64


class FewRowsLinear(nn.Linear):
    """`nn.Linear`, faster for few rows; equal up to the order of summation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        rows = input.numel() // input.shape[-1]
        if not 1 < rows <= (MOST_TALL if self.out_features >= TALL else MOST):
            return super().forward(input)
        out = torch.mm(self.weight, input.reshape(rows, -1).t())
        if self.bias is not None:
            out += self.bias[:, None]
        return out.t().reshape(*input.shape[:-1], self.out_features)


def use_few_rows(model: nn.Module) -> None:
    """Make every plain linear layer of a model one of these, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
