"""Realigning a prompt beside a computed one, level by level, to see how far each is from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from kvcomm.engine.base import Divergence, EngineSequence
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Step
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.filling import surveyed


async def beside(
    open_row: Callable[[], EngineSequence],
    segments: Sequence[Segment],
    levels: Sequence[Recipe],
    dense: EngineSequence,
    budget: float = 1.0,
) -> AsyncIterator[tuple[Recipe, Divergence, int]]:
    """Each level, its divergence from `dense`, and the tokens that measuring it took.

    Levels that come to the same plan are measured once; those that would compute everything are
    left out.
    """
    known: dict[tuple[Step, ...], Divergence] = {}
    for level in levels:
        row = open_row()
        try:
            policy = Realign(level, budget=budget, borrows=True)
            survey = await surveyed(row, segments, policy)
            plan = policy.plan(survey.facts)
            if plan.dense:
                continue
            tokens = 0
            if plan.steps not in known:
                pieces = await row.extend(survey.segments, plan.steps)
                tokens = sum(piece.computed for piece in pieces)
                known[plan.steps] = await row.compare(dense)
        finally:
            await row.close()
        yield level, known[plan.steps], tokens
