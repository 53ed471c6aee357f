"""Small random KV, comparing it, and saving what was learned from it."""

from __future__ import annotations

from pathlib import Path

import torch

from kvcomm.kv import KV
from kvcomm.kv.files import checksum
from kvcomm.reuse.offsets import Offsets
from kvcomm.reuse.state import copy_state, save_state

LAYERS, HEADS, DIM = 3, 2, 4


def random_kv(
    tokens: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    layers: int = LAYERS,
    heads: int = HEADS,
) -> KV:
    """Normal keys and values `[layers, heads, tokens, 4]`."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, layers, heads, tokens, DIM, generator=generator, dtype=torch.float64)
    return KV(*both.to(dtype))


def checksum_of(kv: KV) -> str:
    """A number for all the bits."""
    return checksum((kv.keys, kv.values))


def joined(pieces: list[KV]) -> KV:
    """Pieces one after another along the token axis."""
    keys, values = ([getattr(kv, name) for kv in pieces] for name in ("keys", "values"))
    return KV(torch.cat(keys, dim=2), torch.cat(values, dim=2))


def save_all(folder: Path, model: str, fingerprint: str, offsets: Offsets) -> int:
    """Save all that was learned in no namespace, as for the first time."""
    return save_state(folder, model, fingerprint, copy_state(offsets, "", {}))


def equal(left: KV, right: KV, tolerance: float = 0.0) -> bool:
    """Whether shapes, dtypes and, within `tolerance`, numbers are equal."""
    return same_shape(left, right) and all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance)
        for a, b in ((left.keys, right.keys), (left.values, right.values))
    )


def same_shape(left: KV, right: KV) -> bool:
    """Whether shapes and dtypes are equal."""
    dtypes = {part.dtype for kv in (left, right) for part in (kv.keys, kv.values)}
    return left.keys.shape == right.keys.shape and len(dtypes) == 1
