"""Linear layers on a CPU by oneDNN, which PyTorch leaves to MKL in float32.

MKL is slow at few tokens, and on processors of other makers than its own. Measured on two cores of
an AMD EPYC with SmolLM2 (ms a forward, MKL and oneDNN): one token behind 512 in one sequence 58 and
58, in 8 of them 102 and 81; 16 tokens behind 1,536 108 and 84, 1,024 tokens 2,885 and 2,460.
PyTorch has the product as an operator for its compiler only; where a build lacks it, layers stay as
they are.

Its code is made for every number of tokens, which takes 4 ms and 2.2 MB. oneDNN and PyTorch keep
the last 1,024 pieces of it each, over 400 MB; a step of a model has four or five. They are told to
keep fewer, unless the environment says how many.
"""

from __future__ import annotations

import os
import platform

import torch
from torch import nn

# The names by which PyTorch and oneDNN know how much they may keep, and what we ask for.
KEPT = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
PIECES = "128"


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
        for name in KEPT:  # read when the first product is made
            os.environ.setdefault(name, PIECES)
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear
