"""Recipes: what of a realigned placeholder is computed all the same, and how the rest is predicted.

A recipe with numbers makes a method of the field: rotating alone, the paper's offsets on every
call, repair of leading tokens (EPIC), repair of deviating tokens (CacheBlend), linear offsets with
repair, query-aware repair. The policy `Realign` turns one into the plan of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvcomm.reuse.attended import best, by_place
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import ReuseOptions

# When more of a placeholder would be computed than this, all of it is: little would be saved.
WORTH = 0.7
# Offsets of inputs are used where they leave at most this share of squared error.
HELPS = 0.8
# Where more than this share of the pooled tokens would be computed twice to ask the prompt what it
# attends to, it is not asked; leading tokens are computed instead, and a larger share of them.
QUERY, WIDER = 0.1, 0.1


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

    With a share `pooled`, inputs whose offsets do not help are pooled: that share of their tokens
    is computed, chosen over all of them together, by what the prompt attends to (`query`), or,
    where it cannot be asked, or asking costs too much, by place.
    """

    name: str
    offsets: str = ""
    literals: Literal["compute", "move"] = "compute"
    short: int = 0
    first: int = 0
    leading: float = 1.0
    deviating: float = 0.0
    unknown: Literal["compute", "rotate", "predict"] = "compute"
    pooled: float | None = None
    query: bool = True

    def repaired(self, tokens: int, limit: int) -> tuple[int, int]:
        """Of `tokens`, how many leading and how many deviating ones are computed."""
        first = min(self.first, round(self.leading * tokens), limit)
        return first, min(round(self.deviating * tokens), limit - first)


LINEAR = Recipe("linear", offsets="linear", short=24, first=6, leading=0.08, deviating=0.05)
QUERY_AWARE = Recipe("query-20", short=24, first=512, leading=0.2, unknown="rotate", pooled=0.2)

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
    `borrows` base KV of inputs is that of earlier readers.
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
        """A step for each segment; what cannot be realigned is computed."""
        before = (None, *facts[:-1])
        steps = [*map(self._step, facts, before)]
        chosen = self._together(facts, steps)
        if not any(step.source == "realign" for step in steps):
            why = next((s.reason for s, f in zip(steps, facts, strict=True) if f.offset), None)
            gate = f"{self.reason}; computed: {why or 'nothing to realign'}"
            return Plan(tuple(steps), gate, dense=True)
        return Plan(tuple(steps), self.reason, dense=False, chosen=chosen)

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
        pooled = self.recipe.pooled is not None and fact.base != "message"
        if self.recipe.offsets:
            assert fact.offset is not None
            corrected, reason = fact.offset.shareable, fact.offset.reason
            if pooled:
                corrected = corrected and fact.offset.error <= HELPS
            if not corrected and self.recipe.unknown == "compute":
                return SegmentPlan("compute", reason)
            if not corrected and self.recipe.unknown == "predict":
                corrected = fact.offset.usable
            if not corrected:
                reason = f"rotated only: {reason}"
        # Half of the offset is best for KV that was computed alone.
        scale = 0.5 if pooled and fact.base == "alone" else 1.0
        sure = set(range(fact.done)) | (set(range(fact.tokens)) - set(fact.covered))
        if fact.last:
            sure.add(fact.tokens - 1)
        if pooled and not (corrected and fact.base != "alone"):
            return SegmentPlan(
                "realign", reason, tuple(sorted(sure)), 0, corrected, scale, pooled=True
            )
        first, deviating = self._repaired(fact.tokens, known=corrected or bool(fact.deviations))
        positions = sure | set(range(first))
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

    def _together(self, facts: Sequence[SegmentFacts], steps: list[SegmentPlan]) -> int:
        """How many further tokens of the pooled segments the prompt's attention will choose.

        Where it is not asked, they are chosen here, by place.
        """
        pool = [i for i, step in enumerate(steps) if step.pooled]
        if not pool:
            return 0
        assert self.recipe.pooled is not None
        total = sum(facts[i].tokens for i in pool)
        sure = [set(steps[i].positions or ()) for i in pool]
        twice = self._twice(facts, steps, pool[0])
        asks = twice is not None and twice <= QUERY * total
        share = self.recipe.pooled + (WIDER if twice is not None and not asks else 0)
        count = max(round(min(share, self.budget) * total) - sum(map(len, sure)), 0)
        how = "attended to" if asks else "leading"
        if sum(map(len, sure)) + count >= WORTH * total:
            for i in pool:
                why = f"{WORTH:.0%} of the texts' {total} tokens would be computed anyway"
                steps[i] = SegmentPlan("compute", why)
            return 0
        for i in pool:
            reason = f"{steps[i].reason}; computed: {share:.0%} of {total} tokens, {how}"
            steps[i] = replace(steps[i], reason=reason)
        if asks:
            return count
        scores = by_place([facts[i].tokens for i in pool], [facts[i].spreads for i in pool])
        free = [set(facts[i].covered) - known for i, known in zip(pool, sure, strict=True)]
        for i, known, more in zip(pool, sure, best(scores, free, count), strict=True):
            steps[i] = replace(steps[i], positions=tuple(sorted(known | more)))
        return 0

    def _twice(
        self, facts: Sequence[SegmentFacts], steps: Sequence[SegmentPlan], first: int
    ) -> int | None:
        """How many tokens are computed twice if the prompt is asked what it attends to.

        None where it cannot be: it has to end here, behind the pooled texts.
        """
        if not (self.recipe.query and facts[-1].last) or steps[-1].pooled:
            return None
        return sum(
            len(step.positions or ()) if step.source == "realign" else fact.tokens
            for fact, step in zip(facts[first:], steps[first:], strict=True)
        )

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
