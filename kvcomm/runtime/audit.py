"""`auto` around a call: the choice before it, and behind its answer the audit and the lesson.

A realigned call is audited by a shadow: the same prompt computed, answered greedily, and compared.
An exact call is its own reference: the levels to be probed are realigned beside it. Either way the
computed row teaches the offset models. All of it waits until no call needs the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from kvcomm.engine.base import (
    BACKGROUND,
    SAME_TEXT,
    Answer,
    Call,
    Divergence,
    Engine,
    EngineSequence,
)
from kvcomm.errors import KvcommError
from kvcomm.prompt import Segment
from kvcomm.reuse.auto import Auto, Choice
from kvcomm.reuse.plan import Fact, Step
from kvcomm.reuse.recipe import LINEAR, Recipe
from kvcomm.reuse.state import learned_by
from kvcomm.runtime.beside import beside
from kvcomm.sampling import Sampling
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

# As many tokens as divergences are measured and texts compared over.
GREEDY = Answer(Sampling(max_tokens=SAME_TEXT), record=True)
COMPUTE = Step("compute", "shadow")


@dataclass(frozen=True)
class Finished:
    """A call that has answered: its open row, its whole prompt, and how it was chosen.

    `recorded`: it was answered greedily and its logits are kept.
    """

    seq: EngineSequence
    call: Call
    segments: Sequence[Segment]
    choice: Choice
    recorded: bool
    attempt: int = 1


@dataclass
class Auditor:
    """One run's part of `auto`. Calls are measured in turns: each takes rows of its own."""

    engine: Engine
    auto: Auto
    recorder: Recorder
    namespace: str = ""
    audits: list[Audited] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def choose(self, call: Call, sizes: Mapping[str, int], *, seed: int) -> Choice:
        """The way of a call that reads messages and borrowed inputs of at most these `sizes`."""
        outlook = await self.engine.outlook(replace(call, offsets=LINEAR.offsets))
        verdicts = {name: outlook[name] for name in sizes if name in outlook}
        return self.auto.choose(
            learned_by(call.template, self.namespace),
            verdicts,
            longest=max(map(sizes.__getitem__, verdicts), default=0),
            seed=seed,
        )

    async def after(self, done: Finished) -> None:
        """Measure what was chosen and learn; a failure is recorded and harms nobody."""
        done.seq.hurry(BACKGROUND)
        call = replace(done.call, offsets=LINEAR.offsets, priority=BACKGROUND, goes_on=False)
        done = replace(done, call=call)
        async with self._turn:
            try:
                await self._measure(done)
            except Exception as error:
                for level in done.choice.measured:
                    self._record(done, level, None, 0, error=f"{type(error).__name__}: {error}")

    async def _measure(self, done: Finished) -> None:
        if not done.seq.exact:
            if done.choice.measured:
                await self._audit(done)
            return
        # Probes come before the lesson: the models must not have seen this very call. Where a level
        # had nothing to realign, it is probed with the others.
        if done.choice.measured:
            await self._probe(done)
        await _learn(done.seq, done.segments)

    async def _audit(self, done: Finished) -> None:
        """Compare a realigned row with a computed one, try cheaper levels, and learn from that."""
        level, *cheaper = done.choice.measured
        async with self._shadow(done) as (shadow, tokens):
            self._record(done, level, await done.seq.compare(shadow), tokens, used=True)
            await self._realign(done, cheaper, shadow, 0)
            await _learn(shadow, done.segments)

    async def _probe(self, done: Finished) -> None:
        """Realign an exact call's prompt beside it, once for each level, and compare."""
        if done.recorded:
            await self._realign(done, done.choice.measured, done.seq, 0)
            return
        async with self._shadow(done) as (shadow, tokens):
            await self._realign(done, done.choice.measured, shadow, tokens)

    async def _realign(
        self, done: Finished, levels: Sequence[Recipe], dense: EngineSequence, tokens: int
    ) -> None:
        """Realign the prompt for each level, and compare with `dense`, which cost `tokens`."""
        # What an exact prefix holds is no test of the level.
        call = replace(done.call, reads_prefix=False, feeds_prefix=False)
        found = beside(partial(self._row, call), done.segments, levels, dense, self.auto.budget)
        async for level, divergence, spent in found:
            self._record(done, level, divergence, tokens + spent)
            tokens = 0

    @asynccontextmanager
    async def _shadow(self, done: Finished) -> AsyncIterator[tuple[EngineSequence, int]]:
        """The prompt in a computed row, answered greedily, and what that cost in tokens."""
        room = sum(map(len, done.segments)) + GREEDY.sampling.max_tokens
        shadow = self._row(replace(done.call, capacity=room))
        steps = [COMPUTE] * len(done.segments)
        try:
            pieces = await shadow.extend(done.segments, steps, answer=GREEDY)
            tokens = sum(piece.computed for piece in pieces)
            async for _ in shadow.decode():
                tokens += 1
            yield shadow, tokens
        finally:
            await shadow.close()

    def _row(self, call: Call) -> EngineSequence:
        seq = self.engine.spare(call)
        if seq is None:
            raise KvcommError("there is no room for a second row")
        return seq

    def _record(
        self,
        done: Finished,
        level: Recipe,
        found: Divergence | None,
        tokens: int,
        *,
        used: bool = False,
        error: str = "",
    ) -> None:
        choice = done.choice
        if found:
            self.auto.record(choice.key, level.name, found.mean, choice.samples, used=used)
        event = self.recorder.write(
            Audited,
            node=done.call.node,
            attempt=done.attempt,
            level=level.name,
            used=used,
            target=self.auto.target,
            bound=choice.bounds.get(level.name),
            divergence=found.mean if found else None,
            first_divergence=found.first if found else None,
            top1_agreement=found.top1 if found else None,
            same_text=found.same_text if found else None,
            tokens=tokens,
            error=error,
        )
        self.audits.append(event)


async def _learn(seq: EngineSequence, segments: Sequence[Segment]) -> None:
    """Teach the offset models every placeholder whose base KV is known, from a computed row."""
    survey = await seq.survey(segments, literals=False)
    await seq.observe(taught_by(survey.facts))


def taught_by(facts: Sequence[Fact]) -> list[int]:
    """The segments that a computed row teaches the offsets of: placeholders with base KV."""
    return [i for i, fact in enumerate(facts) if fact.kind == "placeholder" and fact.covered]
