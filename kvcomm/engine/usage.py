"""Where a prompt's tokens came from: the one count, from the engine to the trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from kvcomm.reuse.plan import BaseKind, Source


class Arrival(NamedTuple):
    """`tokens` of a segment, one behind the other, that were there at the clock `at`."""

    at: float
    tokens: int
    computed: int


@dataclass(frozen=True)
class SegmentUsage:
    """One segment of a prompt: `computed + prefix + realigned` = its tokens.

    `index` is its place in the template. `positions` are those computed of a realigned one, the
    others are `corrected` by offsets, times `scale`, or only rotated. Base KV is of the kind
    `base`; `lender` names the node whose prompt it is from, where another prompt lent it.
    """

    index: int
    kind: Literal["literal", "placeholder"]
    name: str
    ids: tuple[int, ...]
    computed: int
    prefix: int
    realigned: int
    source: Source
    reason: str
    positions: tuple[int, ...] = ()
    corrected: bool = False
    scale: float = 1.0
    base: BaseKind | None = None
    lender: str = ""
    arrivals: tuple[Arrival, ...] = ()

    @property
    def tokens(self) -> int:
        """How long the segment is."""
        return len(self.ids)

    def join(self, later: SegmentUsage) -> SegmentUsage:
        """This piece and the next one of the same segment."""
        sources = {self.source, later.source}
        return replace(
            later,
            ids=self.ids + later.ids,
            computed=self.computed + later.computed,
            prefix=self.prefix + later.prefix,
            realigned=self.realigned + later.realigned,
            source=_overall(sources),
            arrivals=self.arrivals + later.arrivals,
        )

    def cut(self, tokens: int) -> tuple[SegmentUsage, int]:
        """Without its last `tokens`, and how many of these were computed for nothing."""
        arrivals = list(self.arrivals)
        wasted = cut_back(arrivals, tokens)
        usage = replace(
            self,
            ids=self.ids[: self.tokens - tokens],
            computed=self.computed - wasted,
            prefix=self.prefix - (tokens - wasted),
            arrivals=tuple(arrivals),
        )
        return usage, wasted

    def restated(self, arrivals: Sequence[Arrival]) -> SegmentUsage:
        """How the segment really came, as a server says once it has answered."""
        computed = sum(arrival.computed for arrival in arrivals)
        if self.source == "realign":
            return self._supplied(computed, arrivals)
        usage = replace(
            self, computed=computed, prefix=self.tokens - computed, arrivals=tuple(arrivals)
        )
        if not usage.prefix:
            return usage
        part = "in part " if computed else ""
        reason = f"{part}in the server's prefix cache"
        return replace(usage, source="compute" if computed else "prefix", reason=reason)

    def _supplied(self, computed: int, arrivals: Sequence[Arrival]) -> SegmentUsage:
        """A realigned segment of which the server computed so much."""
        realigned = self.tokens - computed
        usage = replace(self, computed=computed, realigned=realigned, arrivals=tuple(arrivals))
        if realigned >= self.realigned:
            return usage
        short = f"{self.reason}; the server supplied {realigned} of {self.realigned} tokens"
        return replace(usage, reason=short, source="realign" if realigned else "compute")

    def fields(self, ready: float) -> dict[str, Any]:
        """What a trace says of it; `ready` is the clock when the last input was complete."""
        return {
            "index": self.index,
            "segment": self.kind,
            "name": self.name,
            "tokens": self.tokens,
            "way": self.source,
            "computed": self.computed,
            "prefix": self.prefix,
            "realigned": self.realigned,
            "ahead": sum(arrival.tokens for arrival in self.arrivals if arrival.at <= ready),
            "reason": self.reason,
            "positions": ranges(self.positions),
            "corrected": self.corrected,
            "base": self.base,
            "lender": self.lender,
        }


def _overall(sources: set[Source]) -> Source:
    if "realign" in sources:
        return "realign"
    return "prefix" if sources == {"prefix"} else "compute"


@dataclass
class PromptUsage:
    """The segments of one prompt; `wasted` counts tokens that were computed for nothing."""

    by_index: dict[int, SegmentUsage] = field(default_factory=dict)
    wasted: int = 0

    @property
    def segments(self) -> list[SegmentUsage]:
        """In the order of the prompt."""
        return [usage for _, usage in sorted(self.by_index.items())]

    @property
    def tokens(self) -> int:
        """Prompt tokens so far."""
        return sum(usage.tokens for usage in self.by_index.values())

    @property
    def reused(self) -> bool:
        """Whether anything was not computed for this prompt."""
        return any(usage.prefix or usage.realigned for usage in self.by_index.values())

    def add(self, pieces: Iterable[SegmentUsage]) -> None:
        """Count pieces that entered the sequence."""
        for piece in pieces:
            known = self.by_index.get(piece.index)
            self.by_index[piece.index] = known.join(piece) if known else piece

    def take_back(self, index: int, tokens: int) -> None:
        """The last `tokens` of a segment are out of the sequence again."""
        self.by_index[index], wasted = self.by_index[index].cut(tokens)
        self.wasted += wasted

    def restart(self) -> None:
        """The sequence is gone: what was computed in it was for nothing."""
        self.wasted += sum(usage.computed for usage in self.by_index.values())
        self.by_index.clear()

    def restate(self, arrivals: Iterable[Arrival], again: int) -> None:
        """Count once more, as a server says of its stretches; it computed `again` tokens twice."""
        self.wasted = again
        left = list(arrivals)
        for index, usage in sorted(self.by_index.items()):
            missing, mine = usage.tokens, []
            while missing:
                at, tokens, computed = left.pop(0)
                taken = min(tokens, missing)
                found = min(tokens - computed, taken)  # a prefix comes first
                mine.append(Arrival(at, taken, taken - found))
                missing -= taken
                if tokens > taken:
                    left.insert(0, Arrival(at, tokens - taken, computed - (taken - found)))
            self.by_index[index] = usage.restated(mine)


def cut_back(arrivals: list[Arrival], tokens: int) -> int:
    """Take the last `tokens` off, in place; returns how many of them were computed.

    A prefix comes first, so the end of a piece is what was computed.
    """
    wasted = 0
    while tokens:
        last = arrivals.pop()
        taken = min(last.tokens, tokens)
        lost = min(last.computed, taken)
        tokens, wasted = tokens - taken, wasted + lost
        if last.tokens > taken:
            arrivals.append(Arrival(last.at, last.tokens - taken, last.computed - lost))
    return wasted


def ranges(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending positions as `[start, end)` ranges."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return found
