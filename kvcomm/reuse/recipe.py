"""Recipes: what of a realigned placeholder is computed all the same, and how the rest is predicted.

A recipe with numbers makes a method of the field: rotating alone, the paper's offsets on every
call, repair of leading tokens (EPIC), repair of deviating tokens (CacheBlend), linear offsets with
repair. The policy `Realign` turns one into the plan of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import ReuseOptions

# When more of a placeholder would be computed than this, all of it is: little would be saved.
WORTH = 0.7


@dataclass(frozen=True)
class Recipe:
    """How placeholders with base KV are realigned.

    `offsets` is the family that corrects base KV ("": it is only rotated). `literals` are computed,
    or moved too. Placeholders of up to `short` tokens are computed: little would be saved, and they
    often carry the question. Of every other one are computed: the `first` tokens, but no more than
    the share `leading`, and the share `deviating` of its tokens that deviate most, as measured or,
    where nothing was, by the size of the predicted offset. Where the offset model says that it
    cannot predict, `unknown` placeholders are computed, or only rotated, or predicted all the same
    from what little there is.
    """

    name: str
    offsets: str = ""
    literals: Literal["compute", "move"] = "compute"
    short: int = 0
    first: int = 0
    leading: float = 1.0
    deviating: float = 0.0
    unknown: Literal["compute", "rotate", "predict"] = "compute"

    def repaired(self, tokens: int, limit: int) -> tuple[int, int]:
        """Of `tokens`, how many leading and how many deviating ones are computed."""
        first = min(self.first, round(self.leading * tokens), limit)
        return first, min(round(self.deviating * tokens), limit - first)


LINEAR = Recipe("linear", offsets="linear", short=24, first=6, leading=0.08, deviating=0.05)

# The methods that others propose, and ours, as `kvcomm bench fidelity` measures them.
METHODS = {
    recipe.name: recipe
    for recipe in (
        Recipe("rotate", literals="move"),
        Recipe("anchors", offsets="anchors", literals="move", unknown="predict"),
        Recipe("repair", short=24, first=16),
        Recipe("cacheblend", short=24, deviating=0.15),
        LINEAR,
    )
}


class Realign:
    """Realigns what a recipe can and computes the rest, prefix hits first.

    `budget` is the most that repair may compute of a placeholder, as a share of its tokens. With
    `borrows` base KV of inputs is that of their first reader.
    """

    def __init__(
        self,
        recipe: Recipe,
        reason: str = "",
        budget: float = 1.0,
        *,
        borrows: bool = False,
    ) -> None:
        self.recipe = recipe
        self.budget = budget
        self.name = recipe.name
        self.reason = reason or recipe.name
        self.options = ReuseOptions(
            ahead=True,
            reads_prefix=True,
            feeds_prefix=True,
            publishes=True,
            bases="borrowed" if borrows else "alone",
            literals=recipe.literals == "move",
            offsets=recipe.offsets,
        )

    def leading(self, tokens: int, most: int) -> int:
        """What is sure to be computed of a message, whatever its offsets."""
        if most <= self.recipe.short:
            return tokens
        return self._repaired(tokens, known=bool(self.recipe.offsets))[0]

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """A step for each segment, by itself: what cannot be realigned is computed."""
        before = (None, *facts[:-1])
        steps = tuple(map(self._step, facts, before))
        if not any(step.source == "realign" for step in steps):
            why = next((s.reason for s, f in zip(steps, facts, strict=True) if f.offset), None)
            gate = f"{self.reason}; computed: {why or 'nothing to realign'}"
            return Plan(steps, gate, dense=True)
        return Plan(steps, self.reason, dense=False)

    def _step(self, fact: SegmentFacts, before: SegmentFacts | None) -> SegmentPlan:
        if fact.tokens == 0:
            return SegmentPlan("compute", "empty")
        if fact.prefix == fact.tokens:
            return SegmentPlan("compute", "in the prefix cache")
        if fact.kind == "literal":
            return self._literal(fact, before)
        if not fact.covered:
            return SegmentPlan("compute", fact.absent)
        if fact.tokens <= self.recipe.short:
            return SegmentPlan("compute", f"short: at most {self.recipe.short} tokens")
        corrected, reason = False, "rotated only"
        if self.recipe.offsets:
            assert fact.offset is not None
            corrected, reason = fact.offset.shareable, fact.offset.reason
            if not corrected and self.recipe.unknown == "compute":
                return SegmentPlan("compute", reason)
            if not corrected and self.recipe.unknown == "predict":
                corrected = fact.offset.usable
            if not corrected:
                reason = f"rotated only: {reason}"
        first, deviating = self._repaired(fact.tokens, known=corrected or bool(fact.deviations))
        positions = set(range(max(first, fact.done)))
        positions |= set(range(fact.tokens)) - set(fact.covered)
        if fact.last:
            positions.add(fact.tokens - 1)
        count = len(positions) + deviating
        if count >= WORTH * fact.tokens:
            return SegmentPlan(
                "compute", f"{count} of {fact.tokens} tokens would be computed anyway"
            )
        repair = [f"first {first}"] if first else []
        repair += [f"{deviating} deviating"] if deviating else []
        reason += f"; computed: {', '.join(repair)}" if repair else ""
        if fact.deviations:
            positions |= _most(fact, positions, deviating)
            deviating = 0
        return SegmentPlan("realign", reason, tuple(sorted(positions)), deviating, corrected)

    def _repaired(self, tokens: int, *, known: bool) -> tuple[int, int]:
        """How many leading, and how many deviating tokens are computed."""
        first, deviating = self.recipe.repaired(tokens, int(self.budget * tokens))
        if known:
            return first, deviating
        # Nothing says which tokens deviate: most often it is the leading ones.
        return first + deviating, 0

    def _literal(self, fact: SegmentFacts, before: SegmentFacts | None) -> SegmentPlan:
        if before is None or not self.options.literals:
            return SegmentPlan("compute", "literal" if before else "first literal is exact")
        if not fact.covered:
            return SegmentPlan("compute", fact.absent)
        positions = (fact.tokens - 1,) if fact.last else ()
        known = self.recipe.offsets and before.offset is not None and before.offset.samples > 1
        reason = "offset of the placeholder before" if known else "rotated only"
        return SegmentPlan("realign", reason, positions, corrected=bool(known))


def _most(fact: SegmentFacts, computed: set[int], count: int) -> set[int]:
    """The `count` covered positions of the largest deviation that are not computed anyway."""
    found = zip(fact.deviations, fact.covered, strict=True)
    free = sorted((-size, position) for size, position in found if position not in computed)
    return {position for _, position in free[:count]}
