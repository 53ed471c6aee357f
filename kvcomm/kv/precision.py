"""float64 where it is to be had: an accelerator without it (a Mac's) has its sums on the CPU."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def place_for(dtype: torch.dtype, device: torch.device) -> torch.device:
    """Where tensors of `dtype` are that belong to `device`: MPS has no float64."""
    return CPU if dtype == torch.float64 and device.type == "mps" else device


def place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`, or as near as its dtype goes."""
    return tensor.to(place_for(tensor.dtype, device))


def where_wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on a device that has float64."""
    return tensor.to(place_for(torch.float64, tensor.device))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64."""
    return where_wide(tensor).double()
