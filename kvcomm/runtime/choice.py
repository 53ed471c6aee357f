"""The choice of `auto`, before a call begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvcomm.engine.base import CallSpec, Engine
from kvcomm.reuse.auto import Auto, Choice, Reusable
from kvcomm.reuse.plan import BaseKind, Predictability
from kvcomm.reuse.recipe import LINEAR
from kvcomm.reuse.state import learned_by


def chosen(
    auto: Auto,
    engine: Engine,
    spec: CallSpec,
    messages: Mapping[str, int],
    inputs: Mapping[str, Sequence[int]],
    read: frozenset[str] = frozenset(),
    seed: int = 0,
) -> Choice:
    """What `auto` makes of a call.

    Its `messages` have at most so many tokens, its `inputs` these ids. Those that the run has
    `read` before have base KV by then, the others where an earlier run has read them.
    """
    known = engine.predictability(spec, LINEAR.offsets)
    nothing = Predictability(False, "no offsets")
    kinds: dict[str, BaseKind] = dict.fromkeys(read.intersection(inputs), "borrowed")
    kinds |= engine.bases(spec, inputs)
    texts = [Reusable("message", most, known.get(name, nothing)) for name, most in messages.items()]
    unread = 0
    for name, ids in inputs.items():
        if len(ids) <= LINEAR.short:
            continue
        if name in kinds:
            texts.append(Reusable(kinds[name], len(ids), known.get(name, nothing)))
        else:
            unread += len(ids)
    return auto.choose(learned_by(spec.template, spec.namespace), texts, unread, seed)
