"""Flash attention of neighbouring tokens on a GPU: no mask, and no copies of grouped heads.

For masked queries of grouped heads `scaled_dot_product_attention` has no fused kernel in CUDA that
is always there: it may hold the scores of all heads. `varlen_attn` needs no mask, because it lets
the last query see the last slot and each one before it one slot less. The self-check tries it
first, and a model for which it is wrong keeps the other way.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

varlen_attn: Any = None
with suppress(ImportError):  # before torch 2.10
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn

HALF = (torch.float16, torch.bfloat16)


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel is there: half precision, CUDA, and a PyTorch with all of its options."""
    return (
        device.type == "cuda"
        and dtype in HALF
        and varlen_attn is not None
        and {"enable_gqa", "seqused_k"} <= (varlen_attn.__kwdefaults__ or {}).keys()
    )


def bounds(queries: int, slots: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the one sequence of queries begins and ends, and that of slots: the kernel's format."""
    return tuple(  # type: ignore[return-value]
        torch.tensor([0, count], dtype=torch.int32, device=device) for count in (queries, slots)
    )


def flash_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    limits: tuple[torch.Tensor, torch.Tensor],
    *,
    window: int | None,
    scaling: float | None,
    used: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last queries of a sequence: `query` is `[1, heads, n, head_dim]`, `keys` and `values` are
    `[kv_heads, m, head_dim]`, m ≥ n, `limits` those of `bounds(n, m)`.

    A query sees its own slot and all before it, or the last `window` of these. With `used`, `[1]`
    and int32, the sequence ends behind so many slots. Returns `[1, n, heads, head_dim]`.
    """
    out: torch.Tensor = varlen_attn(
        query[0].transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        *limits,
        query.shape[2],
        keys.shape[1],
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != keys.shape[0],
        seqused_k=used,
    )
    return out[None]
