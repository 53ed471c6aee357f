"""KV between processes: one contiguous array, which the other side reads where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kvcomm.kv import KV


@dataclass(frozen=True)
class Parcel:
    """Keys and values as one array `[2, layers, kv_heads, tokens, head_dim]`, and their checksum.

    NumPy has no bfloat16: its bits travel as `int16`.
    """

    array: Any
    dtype: torch.dtype
    checksum: str


@torch.inference_mode()
def packed(kv: KV) -> Parcel:
    """A copy of `kv` in the host's memory."""
    both = torch.stack((kv.keys.cpu(), kv.values.cpu()))
    bits = both.view(torch.int16) if both.dtype == torch.bfloat16 else both
    return Parcel(bits.numpy(), both.dtype, kv.checksum())


@torch.inference_mode()
def unpacked(parcel: Parcel, device: torch.device) -> KV:
    """The same KV in memory of its own. Raises `ValueError` when it was damaged on the way."""
    # A copy: shared memory is not the store's to keep, and not in its budget.
    both = torch.tensor(parcel.array)
    if both.dtype != parcel.dtype:
        both = both.view(parcel.dtype)
    keys, values = both.to(device)
    kv = KV(keys, values)
    if kv.checksum() != parcel.checksum:
        raise ValueError("damaged on the way: its checksum is another")
    return kv
