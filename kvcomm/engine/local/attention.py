"""Attention over packed sequences: every sequence's KV is read where it lies.

The model's forward sees `[1, total]` tokens of several sequences. Its projections and MLPs treat
them alike; here the new keys and values of each are written into its buffer, and its queries attend
to every filled slot up to their own position (and inside the layer's window, where it has one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from kvcomm.engine.local.flash import bounds, flash_attention
from kvcomm.engine.local.watch import Watch
from kvcomm.kv import KVBuffer

NAME = "kvcomm_packed"
# What other attention functions honour and this one does not: a model that passes it is refused.
FOREIGN = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """The slots `start` to `stop` of a buffer, equal to those of a sequence that takes them."""

    buffer: KVBuffer
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens `offset : offset + len(positions)` of the pack belong to the sequence of `buffer`.

    `positions` are ascending slots; all slots below the last one are filled by then, those that are
    `shared` with a part before this one: layer by layer, as soon as they are there. `watch` sees
    what they attend to.
    """

    buffer: KVBuffer
    offset: int
    positions: Sequence[int]
    shared: SharedPrefix | None = None
    watch: Watch | None = None

    @property
    def contiguous(self) -> bool:
        """Whether the positions are neighbours."""
        return self.positions[-1] - self.positions[0] + 1 == len(self.positions)


@dataclass(eq=False)
class Lone:
    """The next token of one sequence, with all that changes from token to token in tensors."""

    buffer: KVBuffer
    slot: torch.Tensor  # [1]
    used: torch.Tensor  # [1], int32: the slots that are filled with it
    first: torch.Tensor  # [1]: the pack's only token
    limits: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, buffer: KVBuffer) -> Lone:
        """A sequence in `buffer`; say which slot by `at`."""
        device = buffer.keys.device
        slot, used, first = (
            torch.zeros(1, dtype=kind, device=device)
            for kind in (torch.long, torch.int32, torch.long)
        )
        return cls(buffer, slot, used, first, bounds(1, buffer.capacity, device))

    def at(self, slot: int) -> None:
        """The token stands in `slot`."""
        self.slot.fill_(slot)
        self.used.fill_(slot + 1)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        scaling: float | None,
    ) -> torch.Tensor:
        """Write the token's KV and attend to it: shapes as in `packed_attention`."""
        keys, values = self.buffer.keys[layer], self.buffer.values[layer]
        keys.index_copy_(1, self.slot, key[0])
        values.index_copy_(1, self.slot, value[0])
        return flash_attention(
            query, keys, values, self.limits, window=window, scaling=scaling, used=self.used
        )


@dataclass(eq=False)
class Pack:
    """One packed forward: its parts, and what all layers share.

    With `flash` neighbouring tokens are computed by `flash_attention`. A `lone` token has no parts.
    """

    parts: list[Part]
    flash: bool = False
    lone: Lone | None = None
    limits: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    slots: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask(self, index: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive mask `[queries, slots from the window's start to the last position]`."""
        key = (index, window)
        if key not in self.masks:
            part = self.parts[index]
            at = torch.as_tensor(part.positions, device=like.device)
            slot = torch.arange(
                first_slot(part, window), part.positions[-1] + 1, device=like.device
            )
            hidden = slot[None, :] > at[:, None]
            if window is not None:
                hidden |= slot[None, :] <= at[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self.masks[key] = mask.masked_fill_(hidden, float("-inf"))
        return self.masks[key]

    def bounds(
        self, queries: int, slots: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `flash_attention` wants to know of so many queries behind so many slots."""
        key = (queries, slots)
        if key not in self.limits:
            self.limits[key] = bounds(queries, slots, device)
        return self.limits[key]

    def index(self, index: int, device: torch.device) -> torch.Tensor:
        """Slots of a part whose positions are scattered."""
        if index not in self.slots:
            self.slots[index] = torch.as_tensor(self.parts[index].positions, device=device)
        return self.slots[index]


def first_slot(part: Part, window: int | None) -> int:
    """The first slot that any query of the part can see."""
    return 0 if window is None else max(0, part.positions[0] - window + 1)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    pack: Pack | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for `transformers.AttentionInterface`.

    `query` is `[1, heads, total, head_dim]`, `key` and `value` `[1, kv_heads, total, head_dim]`;
    returns `[1, total, heads, head_dim]`. Raises `ValueError` for features it does not know.
    """
    for name in FOREIGN:
        if kwargs.get(name) is not None:
            raise ValueError(f"its attention uses `{name}`")
    if pack is None:
        raise ValueError("its attention layers are not given the layout of the sequences")
    layer: int = module.layer_idx  # type: ignore[assignment]
    if pack.lone is not None:
        return pack.lone.attend(layer, query, key, value, sliding_window, scaling), None
    total = query.shape[2]
    out = (
        None
        if len(pack.parts) == 1
        else query.new_empty((1, total, *query.shape[1:2], query.shape[3]))
    )
    for index, part in enumerate(pack.parts):
        start, count = part.offset, len(part.positions)
        stop = start + count
        keys, values = part.buffer.keys[layer], part.buffer.values[layer]
        low, top = part.positions[0], part.positions[-1] + 1
        if part.shared is not None:
            taken = slice(part.shared.start, part.shared.stop)
            keys[:, taken] = part.shared.buffer.keys[layer][:, taken]
            values[:, taken] = part.shared.buffer.values[layer][:, taken]
        if part.contiguous:
            keys[:, low:top] = key[0, :, start:stop]
            values[:, low:top] = value[0, :, start:stop]
        else:
            slots = pack.index(index, key.device)
            keys.index_copy_(1, slots, key[0, :, start:stop])
            values.index_copy_(1, slots, value[0, :, start:stop])
        if part.watch is not None:
            mine = query[0, :, start:stop]
            part.watch.see(layer, part.positions, mine, keys[:, :top], sliding_window, scaling)
        first = first_slot(part, sliding_window)
        known = keys[None, :, first:top], values[None, :, first:top]
        if pack.flash and part.contiguous:
            result = flash_attention(
                query[:, :, start:stop],
                keys[:, first:top],
                values[:, first:top],
                pack.bounds(count, top - first, query.device),
                window=sliding_window,
                scaling=scaling,
            )
        elif count == 1:
            result = _one_token(query[:, :, start], *known, scaling)
        else:
            causal = low == 0 and top == count and not (sliding_window and sliding_window < count)
            result = scaled_dot_product_attention(
                query[:, :, start:stop],
                *known,
                attn_mask=None if causal else pack.mask(index, sliding_window, query),
                is_causal=causal,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        if out is None:
            return result, None
        out[:, start:stop] = result
    assert out is not None
    return out, None


def _one_token(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """A single token `[1, heads, head_dim]` sees every slot; returns `[1, 1, heads, head_dim]`.

    The query heads of a KV head stand as queries of one head: half precision on a CPU is five times
    faster so than with grouped heads.
    """
    grouped = query.view(1, keys.shape[1], -1, query.shape[-1])
    out = scaled_dot_product_attention(grouped, keys, values, scale=scaling)
    return out.reshape(1, 1, *query.shape[1:])


AttentionInterface.register(NAME, packed_attention)


def packed_forward(
    model: Any,
    ids: Sequence[int],
    positions: Sequence[int],
    wanted: Sequence[int],
    pack: Pack,
) -> torch.Tensor:
    """One forward over packed tokens; logits `[len(wanted), vocabulary]` of those pack indices."""
    device = model.device
    return model_forward(
        model,
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        torch.tensor(wanted, dtype=torch.long, device=device),
        pack,
    )


def model_forward(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, pack: Pack
) -> torch.Tensor:
    """`packed_forward` of tensors: `ids` and `positions` are `[1, total]`, `wanted` `[n]`."""
    out = model(
        input_ids=ids,
        position_ids=positions,
        logits_to_keep=wanted,
        use_cache=False,
        pack=pack,
    )
    logits: torch.Tensor = out.logits[0]
    return logits
