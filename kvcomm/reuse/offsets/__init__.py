"""Offset models: how KV in a consumer's context differs from base KV."""

from collections.abc import Callable

from kvcomm.reuse.offsets.anchors import AnchorPool
from kvcomm.reuse.offsets.base import ANCHORS, OffsetModel, Offsets, kind_of, label_of, labels_of
from kvcomm.reuse.offsets.linear import LinearOffsets

FAMILIES: dict[str, Callable[..., OffsetModel]] = {
    ANCHORS: AnchorPool,
    "linear": LinearOffsets,
}

__all__ = [
    "ANCHORS",
    "FAMILIES",
    "AnchorPool",
    "LinearOffsets",
    "OffsetModel",
    "Offsets",
    "kind_of",
    "label_of",
    "labels_of",
]
