"""The anchor pool of the paper (KVCOMM, section 3 and algorithm 1), offsets kept position-free.

An anchor is an observed placeholder: its base KV, its offset in this consumer's template, and the
offset of the literal behind it. A new placeholder may be shared when at least two anchors are as
long and the softmax over their distances is decided enough; its offset is then a weighted mean of
the anchors' offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kvcomm.kv import KV
from kvcomm.kv.precision import wide
from kvcomm.reuse.offsets.base import OtherShape, check_saved, shape_of
from kvcomm.reuse.plan import Predictability
from kvcomm.reuse.policy import Anchors

CAPACITY = Anchors.capacity  # V in the paper
OLDEST = 5  # the window of the eviction rule
GAMMA = Anchors.gamma
TOP_P = 0.9  # only feeds the use counters


@dataclass(eq=False)
class Anchor:
    """One observation, `[layers, kv_heads, tokens, head_dim]` each; `uses` counts its matches."""

    base: KV
    offset: KV
    literal: KV
    uses: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of base and offsets."""
        return self.base.nbytes + self.offset.nbytes + self.literal.nbytes


class AnchorPool:
    """Up to `capacity` anchors of one placeholder of one template, oldest first."""

    def __init__(self, capacity: int | None = None, gamma: float | None = None) -> None:
        self.capacity = CAPACITY if capacity is None else capacity
        self.gamma = GAMMA if gamma is None else gamma
        self.anchors: list[Anchor] = []
        self._untaken: AnchorPool | None = None

    def predictability(self, base: KV) -> Predictability:
        """The length and entropy test: H(softmax(−‖V_φ − V_ψ‖)) ≤ γ·log |A|.

        Counts a use for the anchors that make up 0.9 of the weight of a shared placeholder.
        """
        usable = self._compatible(len(base))
        count = len(usable)
        if count < 2:
            have = "1 anchor" if count == 1 else f"{count} anchors"
            return Predictability(False, f"{have} of at least {len(base)} tokens, needs 2", count)
        tokens = len(base)
        distances = wide(
            torch.stack(
                [
                    torch.linalg.vector_norm((base.values - a.base.values[:, :, :tokens]).float())
                    for a in usable
                ]
            )
        )
        weights = torch.softmax(-distances, dim=0)
        entropy = float(-(weights * weights.clamp_min(1e-300).log()).sum())
        limit = self.gamma * math.log(count)
        numbers = f"entropy {entropy:.3f}, limit {limit:.3f}, {count} anchors"
        if entropy > limit:
            return Predictability(False, f"no anchor stands out: {numbers}", count)
        order = torch.argsort(weights, descending=True).tolist()
        mass = 0.0
        for index in order:
            usable[index].uses += 1
            mass += float(weights[index])
            if mass >= TOP_P:
                break
        return Predictability(True, f"shared: {numbers}", count)

    def frozen(self) -> AnchorPool:
        """A pool with the anchors of now."""
        pool = AnchorPool(self.capacity, self.gamma)
        pool.anchors = list(self.anchors)
        return pool

    def predict(self, base: KV) -> KV:
        """Per token, anchors weighted by softmax(−mean |difference|), keys and values apart."""
        usable = self._usable(base)
        tokens = len(base)

        def mix(name: str) -> torch.Tensor:
            own = getattr(base, name)
            distances = torch.stack(
                [
                    (own - getattr(a.base, name)[:, :, :tokens]).abs().mean(dim=(0, 1, 3))
                    for a in usable
                ]
            )  # [anchors, tokens]
            weights = torch.softmax(-distances.float(), dim=0).to(own.dtype)
            total = torch.zeros_like(own)
            for anchor, weight in zip(usable, weights, strict=True):
                total += weight[None, None, :, None] * getattr(anchor.offset, name)[:, :, :tokens]
            total[0] = 0
            return total

        return KV(mix("keys"), mix("values"))

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """Per layer, head and channel, anchors weighted by their ℓ2 distance over the tokens.

        Anchors are aligned on their last tokens, the ones next to the literal. Those in front of a
        literal of another length say nothing: one day may take more tokens to write than another.
        """
        usable = [anchor for anchor in self._usable(base) if len(anchor.literal) == tokens]
        if not usable:
            raise ValueError(f"no anchor in front of a literal of {tokens} tokens")

        def mix(name: str) -> torch.Tensor:
            own = getattr(base, name)
            distances = torch.stack(
                [
                    torch.linalg.vector_norm(
                        (own - getattr(a.base, name)[:, :, len(a.base) - len(base) :]).float(),
                        dim=2,
                    )
                    for a in usable
                ]
            )  # [anchors, layers, kv_heads, head_dim]
            weights = torch.softmax(-distances, dim=0).to(own.dtype)
            offsets = torch.stack([getattr(a.literal, name) for a in usable])
            total = (weights[:, :, :, None, :] * offsets).sum(dim=0)
            total[0] = 0
            return total

        return KV(mix("keys"), mix("values"))

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Add an anchor; above capacity drop the least used of the oldest `OLDEST` before it."""
        if len(base) == 0:
            return
        anchor = Anchor(base, offset, literal)
        for pool in (self, self._untaken):
            if pool is not None:
                pool._add(anchor)

    def _add(self, anchor: Anchor) -> None:
        self.anchors.append(anchor)
        if len(self.anchors) > self.capacity:
            oldest = self.anchors[: min(OLDEST, self.capacity)]
            self.anchors.remove(min(oldest, key=lambda anchor: anchor.uses))

    def _compatible(self, tokens: int) -> list[Anchor]:
        return [anchor for anchor in self.anchors if len(anchor.base) >= tokens]

    def _usable(self, base: KV) -> list[Anchor]:
        usable = self._compatible(len(base))
        if not usable:
            raise ValueError(f"no anchor of at least {len(base)} tokens")
        if shape_of(usable[0].base) != shape_of(base):
            raise OtherShape
        return usable

    @property
    def samples(self) -> int:
        """Anchors in the pool."""
        return len(self.anchors)

    @property
    def nbytes(self) -> int:
        """Bytes of all anchors, also of those that are only kept to be taken."""
        only = self._untaken.anchors if self._untaken else []
        return sum(anchor.nbytes for anchor in {*self.anchors, *only})

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors by `INDEX.PART.keys|values`, and the use counters."""
        tensors = {"uses": torch.tensor([anchor.uses for anchor in self.anchors])}
        for index, anchor in enumerate(self.anchors):
            for part in ("base", "offset", "literal"):
                kv: KV = getattr(anchor, part)
                tensors[f"{index}.{part}.keys"] = kv.keys.contiguous()
                tensors[f"{index}.{part}.values"] = kv.values.contiguous()
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace the pool by a saved one. Raises `ValueError` for tensors that do not fit."""
        anchors = _anchors(tensors)
        _check_shapes(anchors)
        self.anchors = anchors[-self.capacity :]

    def merge(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add the anchors of another pool one by one, the least used of the oldest giving way.

        They stand behind those that are here, with the uses that they had there. Raises
        `ValueError` for tensors that do not fit.
        """
        added = _anchors(tensors) if tensors else []
        _check_shapes([*self.anchors, *added])
        for anchor in added:
            self._add(anchor)

    def take(self) -> dict[str, torch.Tensor]:
        """The anchors observed here since the last `take`."""
        taken, self._untaken = self._untaken, AnchorPool(self.capacity, self.gamma)
        return taken.state() if taken and taken.anchors else {}


def _anchors(tensors: dict[str, torch.Tensor]) -> list[Anchor]:
    """The anchors that `state` wrote down; their shapes are not compared. Raises `ValueError`."""
    check_saved(tensors)

    def part(index: int, name: str) -> KV:
        return KV(tensors[f"{index}.{name}.keys"], tensors[f"{index}.{name}.values"])

    return [
        Anchor(part(i, "base"), part(i, "offset"), part(i, "literal"), int(uses))
        for i, uses in enumerate(tensors["uses"].tolist())
    ]


def _check_shapes(anchors: list[Anchor]) -> None:
    """Raise `ValueError` for anchors that cannot be of one pool."""
    kvs = [kv.keys for anchor in anchors for kv in (anchor.base, anchor.literal)]
    if len({(*keys.shape[:2], keys.shape[3]) for keys in kvs}) > 1 or any(
        anchor.base.keys.shape != anchor.offset.keys.shape for anchor in anchors
    ):
        raise ValueError("anchors of several shapes")
