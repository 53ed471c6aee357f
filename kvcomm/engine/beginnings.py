"""Equal beginnings: what a row of a step takes from another one that computes it in that step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvcomm.engine.attention import Lent
from kvcomm.kv import Slab
from kvcomm.kv.prefix import BLOCK
from kvcomm.prompt import common_prefix


@dataclass(frozen=True)
class Beginning:
    """The leading ids of a row of a namespace."""

    namespace: str
    ids: Sequence[int]

    def shared(self, other: Beginning) -> int:
        """How many leading ids both have, 0 in different namespaces."""
        return common_prefix(self.ids, other.ids) if self.namespace == other.namespace else 0


def lent(
    wanted: Beginning, start: int, end: int, givers: Iterable[tuple[Slab, Beginning, int]]
) -> Lent | None:
    """The longest piece of `wanted`, from slot `start` on and below `end`, that a giver has.

    Givers are slabs, what they give, and the slots of it that are filled behind the step. None for
    less than a block, as in the prefix cache.
    """
    found = [
        Lent(slab, start, min(wanted.shared(given), filled, end)) for slab, given, filled in givers
    ]
    best = max(found, key=lambda one: one.stop, default=None)
    return best if best is not None and best.stop - start >= BLOCK else None
