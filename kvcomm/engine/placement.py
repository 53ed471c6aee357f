"""One `extend` from plan to books: what was filled, what a prefix held, what was computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvcomm.engine.base import Extended
from kvcomm.engine.rows import Row
from kvcomm.kv import PrefixCache
from kvcomm.reuse.plan import Way


@dataclass
class Piece:
    """One segment in the row, from slot `start` on; its first `done` tokens came before.

    `positions` are computed of a realigned one (None: all of it), the others hold realigned KV,
    `corrected` by offsets or only rotated.
    """

    start: int
    size: int
    reason: str
    done: int = 0
    positions: list[int] | None = None
    corrected: bool = False


@dataclass
class Placement:
    """The segments of one `extend`, appended to `row` from slot `start` on.

    The leading computed segments of an exact row may be adopted from the prefix cache. That is
    decided when their turn to be computed comes, not when they are queued: until then another row
    may have computed the same prefix.
    """

    row: Row
    start: int
    answers: bool
    pieces: list[Piece] = field(default_factory=list)
    adopted: int = 0  # slots below this one were copied, not computed

    def slots(self) -> list[int]:
        """The slots to compute, ascending. An answer needs the logits of the last slot."""
        found: list[int] = []
        for piece in self.pieces:
            if piece.positions is None:
                begin = max(piece.start + piece.done, self.adopted)
                found += range(begin, piece.start + piece.size)
            else:
                found += [piece.start + position for position in piece.positions]
        last = len(self.row) - 1
        return found if found[-1:] == [last] or not self.answers else [*found, last]

    @property
    def adoptable(self) -> int:
        """The leading slots of the row that may come from the prefix cache.

        The final token of a prompt is always computed: its logits are wanted.
        """
        lead = self.start
        for piece in self.pieces:
            if piece.positions is not None:
                break
            lead = piece.start + piece.size
        return lead - (self.answers and lead == len(self.row))

    def adopt(self, cache: PrefixCache, namespace: str) -> None:
        """Copy what the cache holds of the leading computed segments."""
        match = cache.match(self.row.ids[: self.adoptable], namespace)
        if match is None or match[0] is self.row.slab:
            return
        slab, held = match
        if held > self.start:
            self.row.slab.copy_from(slab, self.start, held)
            self.take(held)

    def take(self, stop: int) -> None:
        """The slots below `stop` are there."""
        self.adopted = stop

    def report(self) -> list[Extended]:
        """What became of each segment."""
        done: list[Extended] = []
        for piece in self.pieces:
            rest = piece.size - piece.done
            if piece.positions is not None:
                count = len(piece.positions)
                done.append(
                    Extended(
                        "realign",
                        count,
                        0,
                        rest - count,
                        piece.reason,
                        (*range(piece.done), *piece.positions),
                        piece.corrected,
                    )
                )
                continue
            hit = min(max(self.adopted - piece.start - piece.done, 0), rest)
            way: Way = "prefix" if 0 < hit == rest else "compute"
            reason = piece.reason
            if hit:
                reason = "in the prefix cache" if way == "prefix" else "in part in the prefix cache"
            done.append(Extended(way, rest - hit, hit, 0, reason))
        return done
