"""Realigning one segment: from base KV, offset models and a plan to the KV that is written.

Tensors in, tensors out: it knows neither sequences nor caches nor threads. Rotating to the place in
the prompt is left to whoever writes the KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets import OffsetModel
from kvcomm.reuse.plan import SegmentPlan


@dataclass(frozen=True, eq=False)
class Base:
    """Base KV of a segment, and the segment's positions that it covers, ascending."""

    kv: KV
    covered: Sequence[int]


@dataclass(frozen=True, eq=False)
class Realigned:
    """`kv`, position-free, belongs at the positions `filled` of the segment, in that order.

    The positions `computed` are still to be computed. Both are ascending.
    """

    kv: KV
    filled: list[int]
    computed: list[int]


def realign(base: Base, plan: SegmentPlan, tokens: int, done: int, offset: KV | None) -> Realigned:
    """Realign a segment of `tokens`, of which the first `done` are in the sequence already.

    `offset` is what is added to base KV (None: nothing), as an offset model predicted it. Deviating
    positions are those of the largest offset.
    """
    there = set(range(done))
    uncovered = set(range(tokens)).difference(base.covered)
    computed = there.union(plan.positions or (), uncovered)
    if plan.deviating and offset is not None:
        computed |= _largest(_size(offset), base.covered, computed, plan.deviating)
    keep = [i for i, position in enumerate(base.covered) if position not in computed]
    # One copy at a time: a long input's KV is large.
    if offset is not None and plan.scale != 1:
        offset = KV(offset.keys * plan.scale, offset.values * plan.scale)
    kv = base.kv if offset is None else base.kv + offset
    del offset
    if len(keep) < len(base.kv):
        kv = kv.take(keep)
    return Realigned(kv, [base.covered[i] for i in keep], sorted(computed - there))


def observe(
    model: OffsetModel, truth: KV, base: Base, literal: tuple[KV, KV] | None = None
) -> None:
    """Teach a model the offset of a computed placeholder: `truth`, at the covered positions.

    `literal` is the truth and base KV of the literal behind it. `truth` is taken over.
    """
    truth -= base.kv
    behind = base.kv.slice(0, 0) if literal is None else literal[0] - literal[1]
    model.observe(base.kv, truth, behind)


def _size(offset: KV) -> torch.Tensor:
    """How large the offset of every token is, `[tokens]`: each layer counts alike."""
    total = torch.zeros(len(offset), device=offset.keys.device)
    for part in (offset.keys[1:], offset.values[1:]):
        size = part.float().square().sum(dim=(1, 3))  # [layers - 1, tokens]
        total += (size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)).sum(dim=0)
    return total


def _largest(
    size: torch.Tensor, covered: Sequence[int], computed: set[int], count: int
) -> set[int]:
    """The `count` covered positions with the largest `size` that are not computed anyway."""
    order = torch.argsort(size, descending=True).tolist()
    free = [covered[i] for i in order if covered[i] not in computed]
    return set(free[:count])
