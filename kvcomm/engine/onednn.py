"""Linear layers on a CPU by oneDNN, which PyTorch leaves to MKL in float32.

MKL is slow at few rows, and on processors of other makers than its own. Measured on two cores of an
AMD EPYC with SmolLM2 (ms a forward, MKL and oneDNN): one token behind 512 in one row 58 and 58, in
8 rows 102 and 81; 16 tokens behind 1,536 in one row 108 and 84, 1,024 tokens 2,885 and 2,460.
PyTorch has the product as an operator for its compiler only; where a build lacks it, layers stay as
they are. A number of rows that was not seen before costs 4 ms once.
"""

from __future__ import annotations

import platform

import torch
from torch import nn


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in float32 on a CPU; equal up to the order of summation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return out


def usable() -> bool:
    """Whether this build of PyTorch has the operator, on a processor where it was measured."""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and platform.machine().lower() in ("x86_64", "amd64")


def use_onednn(model: nn.Module) -> None:
    """Make every plain linear layer of a model one of these, in place, where they are usable."""
    if usable():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear
