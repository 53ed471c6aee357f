"""Offset models: how KV in a consumer's context differs from base KV."""

from kvcomm.reuse.offsets.anchors import AnchorPool
from kvcomm.reuse.offsets.base import OffsetModel, Offsets

__all__ = ["AnchorPool", "OffsetModel", "Offsets"]
