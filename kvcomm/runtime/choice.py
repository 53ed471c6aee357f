"""The choice of `auto`, before a call begins."""

from __future__ import annotations

from collections.abc import Mapping

from kvcomm.engine.base import CallSpec, Engine
from kvcomm.reuse.auto import Auto, Choice
from kvcomm.reuse.recipe import LINEAR
from kvcomm.reuse.state import learned_by


def chosen(
    auto: Auto, engine: Engine, spec: CallSpec, sizes: Mapping[str, int], seed: int
) -> Choice:
    """What `auto` makes of a call whose messages and shared inputs have at most these `sizes`."""
    known = engine.predictability(spec, LINEAR.offsets)
    offsets = {name: known[name] for name in sizes if name in known}
    return auto.choose(
        learned_by(spec.template, spec.namespace),
        offsets,
        longest=max((sizes[name] for name in offsets), default=0),
        seed=seed,
    )
