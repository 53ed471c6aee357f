"""The server's own rotary embedding, put on and taken off by the table that it rotates with.

Its table may be rounded (bf16), and what is moved must be rotated as what is computed beside it. So
keys are not turned by angles but by the rows of that table, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Embeddings whose table depends on nothing but the position.
STATIC = frozenset(
    {
        "RotaryEmbedding",
        "Llama3RotaryEmbedding",
        "LinearScalingRotaryEmbedding",
        "NTKScalingRotaryEmbedding",
        "YaRNScalingRotaryEmbedding",
    }
)
# Where the table is tried out.
POSITIONS = (0, 1, 2, 3, 7, 31, 100, 511, 1000, 4000, 30000, 120000)
# How far off the check may be, by the precision of the table.
NEAR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class TableRope:
    """Rotates keys `[..., tokens, head_dim]` in float32, as `kvcomm.kv.Rope` does.

    `table` is `[positions, rotary_dim]`, cosines before sines. `interleaved` pairs dimensions
    (2i, 2i+1) instead of (i, i + rotary_dim/2); what is beyond `rotary_dim` passes through.
    """

    table: torch.Tensor
    interleaved: bool = False

    def rotate(self, keys: torch.Tensor, start: int) -> torch.Tensor:
        """Position-free keys put at `start` and behind it."""
        cos, sin = self._rows(keys, start)
        return self._turn(keys, cos, sin)

    def unrotate(self, keys: torch.Tensor, start: int) -> torch.Tensor:
        """The inverse: keys at `start` and behind it made position-free."""
        cos, sin = self._rows(keys, start)
        size = cos.square() + sin.square()  # 1 but for rounding and YaRN's scale
        return self._turn(keys, cos / size, -sin / size)

    def move(self, keys: torch.Tensor, start: int, to: int) -> torch.Tensor:
        """Keys at `start` and behind it put at `to`: both turns in one."""
        cos, sin = self._rows(keys, start)
        there, rise = self._rows(keys, to)
        size = cos.square() + sin.square()
        return self._turn(
            keys, (there * cos + rise * sin) / size, (rise * cos - there * sin) / size
        )

    def _rows(self, keys: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.table[start : start + keys.shape[-2]].to(keys.device, torch.float32)
        cos, sin = rows.chunk(2, dim=-1)
        return cos, sin

    def _turn(self, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        keys, rotary = keys.float(), self.table.shape[-1]
        if self.interleaved:
            first, second = slice(0, rotary, 2), slice(1, rotary, 2)
        else:
            first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
        out = keys.clone()
        left, right = keys[..., first], keys[..., second]
        out[..., first] = left * cos - right * sin
        out[..., second] = right * cos + left * sin
        return out

    def to(self, device: torch.device) -> TableRope:
        """The same on another device."""
        return TableRope(self.table.to(device), self.interleaved)


def rope_of(modules: Iterable[Any], dim: int) -> TableRope:
    """The rotary embedding of a model whose modules these are, and whose heads have `dim`.

    It is tried out on keys. Raises `ValueError` for several ones, for one that depends on more than
    the position, and where the trial fails.
    """
    found = list(modules)
    kinds = sorted(type(module).__name__ for module in found)
    if len(found) != 1:
        raise ValueError(f"{len(found)} rotary embeddings {kinds}, where one can be moved")
    module = found[0]
    table = getattr(module, "cos_sin_cache", None)
    if kinds[0] not in STATIC or table is None or module.head_size != dim:
        raise ValueError(f"keys under a {kinds[0]} of {module.head_size} cannot be moved")
    if len(getattr(module, "scaling_factors", (1,))) != 1:
        raise ValueError("a rotary embedding with several scaling factors")
    rope = TableRope(table.detach(), not module.is_neox_style)
    _check(rope, module, dim)
    return rope


def _check(rope: TableRope, module: Any, dim: int) -> None:
    """Compare with what the module does to keys. Raises `ValueError`."""
    device, dtype = rope.table.device, rope.table.dtype
    at: Sequence[int] = [p for p in POSITIONS if p < len(rope.table)]
    keys = torch.linspace(-1, 1, len(at) * dim, device=device).view(len(at), dim).to(dtype)
    places = torch.tensor(at, device=device)
    _, theirs = module.forward_native(places, keys.clone(), keys.clone())
    ours = torch.cat([rope.rotate(keys[i : i + 1], p) for i, p in enumerate(at)])
    back = torch.cat([rope.unrotate(ours[i : i + 1], p) for i, p in enumerate(at)])
    near = NEAR.get(dtype, 1e-5)
    off = float((ours - theirs.view_as(keys).float()).abs().max())
    lost = float((back - keys.float()).abs().max())
    if not max(off, lost) <= near:
        raise ValueError(f"its rotary embedding is not as it was read: off by {max(off, lost):.2g}")
