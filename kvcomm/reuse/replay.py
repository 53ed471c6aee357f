"""Replay: the plan of an earlier call once more, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan, Source
from kvcomm.reuse.policy import ReuseOptions


@dataclass(frozen=True)
class Planned:
    """What an earlier call did with one segment.

    `positions` are the `[start, end)` ranges that were computed of a realigned one. `borrowed`: its
    base KV was that of an earlier reader.
    """

    name: str
    tokens: int
    source: Source
    positions: tuple[tuple[int, int], ...] = ()
    corrected: bool = False
    scale: float = 1.0
    borrowed: bool = False


class Replay:
    """Does with every segment what was done before.

    A segment that is another one now (its text came out longer or shorter) is computed, and so is
    what has no base KV; the reason says so.
    """

    name = "replay"

    def __init__(self, planned: Sequence[Planned], offsets: str) -> None:
        self.planned = tuple(planned)
        self.options = ReuseOptions(
            reads_prefix=True,
            feeds_prefix=True,
            publishes=True,
            bases="borrowed" if any(step.borrowed for step in planned) else "alone",
            literals=any(
                step.source == "realign" and step.name.startswith("literal ") for step in planned
            ),
            offsets=offsets,
        )

    def leading(self, tokens: int, most: int) -> int:
        """Nothing: what was planned holds for a whole message."""
        return 0

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """The recorded steps, where the segments are still the same."""
        pairs = zip_longest(facts, self.planned[: len(facts)])
        steps = tuple(self._step(fact, planned) for fact, planned in pairs)
        dense = not any(step.source == "realign" for step in steps)
        return Plan(steps, "replayed", dense=dense)

    @staticmethod
    def _step(fact: SegmentFacts, planned: Planned | None) -> SegmentPlan:
        if planned is None or planned.name != fact.name:
            return SegmentPlan("compute", "not in the replayed plan")
        if planned.tokens != fact.tokens:
            return SegmentPlan(
                "compute", f"replayed plan has {planned.tokens} tokens here, now {fact.tokens}"
            )
        if planned.source != "realign":
            return SegmentPlan("compute", "replayed: computed")
        if not fact.covered:
            return SegmentPlan("compute", f"replayed: realigned, but {fact.absent} now")
        known = fact.kind == "literal" or (fact.offset is not None and fact.offset.samples > 0)
        corrected = planned.corrected and known
        how = "offsets" if corrected else "rotated only"
        inside = (range(max(start, 0), min(end, fact.tokens)) for start, end in planned.positions)
        positions = tuple(sorted(set().union(*inside)))
        return SegmentPlan("realign", f"replayed: {how}", positions, 0, corrected, planned.scale)
