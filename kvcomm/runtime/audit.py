"""`auto` around a call: the choice before it, and behind its answer the audit and the lesson.

A realigned call is audited by a shadow: the same prompt computed, answered greedily, and compared.
An exact call is its own reference: the level to be probed is realigned beside it. Either way the
computed row teaches the offset models. All of it waits until no call needs the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvcomm.engine.base import BACKGROUND, Answer, Call, Divergence, Engine, EngineSequence
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import Auto, Choice
from kvcomm.reuse.plan import Fact, Step
from kvcomm.reuse.recipe import LINEAR, Realign, Recipe
from kvcomm.sampling import Sampling
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

# As many tokens as divergences are measured and texts compared over.
GREEDY = Answer(Sampling(max_tokens=32), record=True)
COMPUTE = Step("compute", "shadow")


@dataclass
class Auditor:
    """One run's part of `auto`. `shared` are the inputs that several nodes read.

    Their base KV pays: the others are only realigned where it is in the store already.
    """

    engine: Engine
    auto: Auto
    shared: frozenset[str]
    recorder: Recorder
    namespace: str = ""
    audits: list[Audited] = field(default_factory=list)

    async def choose(self, template: Template, tokens: int, steps: int, seed: int) -> Choice:
        """The way of a call with up to `tokens` to compute and `steps` until its last input."""
        verdicts = await self.engine.outlook(template, LINEAR.offsets, self.namespace)
        key = self._key(template)
        return self.auto.choose(key, verdicts, tokens=tokens, steps=steps, seed=seed)

    async def prepare(self, inputs: dict[str, tuple[int, ...]], priority: int) -> int:
        """Make base KV of the shared inputs; returns the tokens computed."""
        made = 0
        for name, ids in inputs.items():
            if name in self.shared:
                made += await self.engine.make_base(ids, self.namespace, priority)
        return made

    async def after(
        self,
        seq: EngineSequence,
        call: Call,
        segments: Sequence[Segment],
        choice: Choice,
        recorded: bool,
        attempt: int = 1,
    ) -> None:
        """Measure what was chosen and learn; a failure is recorded and harms nobody.

        `recorded`: the call was answered greedily and its logits are kept.
        """
        seq.hurry(BACKGROUND)
        call = replace(call, offsets=LINEAR.offsets, priority=BACKGROUND)
        try:
            if not seq.exact:
                if choice.audited and choice.level:
                    await self._audit(seq, call, segments, choice.level, choice.bound, attempt)
                return
            inputs = {s.name: s.ids for s in segments if s.kind == "placeholder"}
            inputs = {name: ids for name, ids in inputs.items() if name not in call.messages}
            await self.prepare(inputs, BACKGROUND)
            # The probe comes before the lesson: it must not have seen this very call.
            if choice.level and not choice.used:
                await self._probe(seq, call, segments, choice, recorded, attempt)
            await _learn(seq, segments)
        except Exception as error:
            self._record(
                call, attempt, choice.level, choice.used, choice.bound, None, 0, _text(error)
            )

    async def _audit(
        self,
        seq: EngineSequence,
        call: Call,
        segments: Sequence[Segment],
        level: Recipe,
        bound: float | None,
        attempt: int,
    ) -> None:
        """Compare a realigned row with a computed one, and learn from that."""
        shadow, tokens = await self._shadow(call, segments)
        try:
            found = await seq.compare(shadow)
            self._record(call, attempt, level, True, bound, found, tokens)
            await _learn(shadow, segments)
        finally:
            await shadow.close()

    async def _probe(
        self,
        seq: EngineSequence,
        call: Call,
        segments: Sequence[Segment],
        choice: Choice,
        recorded: bool,
        attempt: int,
    ) -> None:
        """Realign an exact call's prompt beside it, and compare."""
        level = choice.level
        assert level is not None
        # What an exact prefix holds is no test of the level.
        beside = self.engine.open(replace(call, reads_prefix=False, feeds_prefix=False))
        shadow, tokens = (None, 0) if recorded else await self._shadow(call, segments)
        try:
            survey = await beside.survey(segments, inputs=False, literals=False)
            plan = Realign(level, budget=self.auto.budget).plan(survey.facts)
            if plan.dense:
                return
            done = await beside.extend(survey.segments, plan.steps, pilot=plan.pilot)
            found = await beside.compare(shadow or seq)
            tokens += sum(piece.computed for piece in done) + round(beside.pilot_tokens)
            self._record(call, attempt, level, False, choice.bound, found, tokens)
        finally:
            await beside.close()
            if shadow:
                await shadow.close()

    async def _shadow(self, call: Call, segments: Sequence[Segment]) -> tuple[EngineSequence, int]:
        """The prompt in a computed row, answered greedily, and what that cost in tokens."""
        room = sum(map(len, segments)) + GREEDY.sampling.max_tokens
        shadow = self.engine.open(replace(call, capacity=room))
        done = await shadow.extend(segments, [COMPUTE] * len(segments), answer=GREEDY)
        tokens = sum(piece.computed for piece in done)
        async for _ in shadow.decode():
            tokens += 1
        return shadow, tokens

    def _record(
        self,
        call: Call,
        attempt: int,
        level: Recipe | None,
        used: bool,
        bound: float | None,
        found: Divergence | None,
        tokens: int,
        error: str = "",
    ) -> None:
        measured = {}
        if found is not None and level is not None:
            self.auto.record(self._key(call.template), level.name, found.mean)
            measured = {
                "divergence": found.mean,
                "first_divergence": found.first,
                "top1_agreement": found.top1,
                "same_text": found.same_text,
            }
        event = self.recorder.write(
            Audited,
            node=call.node,
            attempt=attempt,
            level=level.name if level else "",
            used=used,
            target=self.auto.target,
            bound=bound,
            tokens=tokens,
            error=error,
            **measured,
        )
        self.audits.append(event)

    def _key(self, template: Template) -> str:
        return f"{self.namespace}/{template.fingerprint}"


async def _learn(seq: EngineSequence, segments: Sequence[Segment]) -> None:
    """Teach the offset models every placeholder whose base KV is known, from a computed row."""
    survey = await seq.survey(segments, inputs=False, literals=False)
    await seq.observe([i for i, fact in enumerate(survey.facts) if _teaches(fact)])


def _teaches(fact: Fact) -> bool:
    return fact.kind == "placeholder" and bool(fact.covered)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
