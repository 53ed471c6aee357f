"""Filling a row: the prompt goes in as its inputs become known, and the books are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvcomm.engine.base import READY, Answer, EngineSequence, Survey
from kvcomm.errors import StartOver
from kvcomm.prompt import Segment, Template, common_prefix
from kvcomm.reuse.plan import Fact, Plan, Step
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.account import Account
from kvcomm.runtime.draft import Draft
from kvcomm.runtime.loan import Loan

# Chunks behind a message that is being written. Fine ones keep little for the moment when the
# last input is complete; they cost efficiency, so inputs that do not arrive last get coarse ones,
# which fill a step. What is left of these is due when the next producer begins.
FINE = 16
COARSE = 256
# Of a message that is realigned only leading tokens are computed, so there are few chunks.
LEADING = 8
FOLLOWED = Step("compute", "followed while it was written")


@dataclass
class Filling:
    """One prompt on its way into rows: into another one, from the start, when a row was lost.

    `room` is kept for the answer. A `patient` filling waits until the whole prompt is known.
    `on_ready` is called when the last input is complete. KV of inputs comes by `loans`, if the
    policy borrows it, and goes by `lends`.
    """

    template: Template
    policy: Policy
    inputs: Mapping[str, tuple[int, ...]]
    drafts: Mapping[str, Draft]
    answer: Answer
    room: int
    on_ready: Callable[[], None]
    loans: Mapping[str, Loan] = field(default_factory=dict)
    lends: Mapping[str, Loan] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    plans: list[Plan] = field(default_factory=list)
    base_tokens: int = 0
    ahead_s: float = 0.0
    patient: bool = False

    @property
    def gate(self) -> str:
        """What the policy decided for the prompt as a whole."""
        return next((p.gate for p in self.plans if not p.dense), self.plans[-1].gate)

    @property
    def dense(self) -> bool:
        """Whether nothing was reused on purpose."""
        return all(plan.dense for plan in self.plans)

    @property
    def reused(self) -> bool:
        """Whether anything in the row was not computed for it."""
        return any(e.prefix or e.realigned for e in self.account.entries.values())

    def drop(self) -> None:
        """The row is gone: start over."""
        self.account.drop()
        self.plans.clear()

    async def run(self, seq: EngineSequence) -> None:
        """Extend the row as inputs become known.

        A message is followed while it is written: what is sure to be computed of it is, and the
        rest is taken when it is done. Raises `StartOver` when what is in the row turns out to be of
        no use; then the filling is patient.
        """
        pending: list[tuple[int, Segment]] = []
        slots = self.template.slots()
        for index, slot in enumerate(slots):
            if isinstance(slot, Segment):
                pending.append((index, slot))
            elif slot in self.inputs:
                loan = self.loans.get(slot) if self.policy.borrows else None
                if loan and not loan.settled and pending and self._early:
                    await self._flush(seq, pending)
                handle = await loan.given() if loan else None
                pending.append((index, Segment("placeholder", slot, self.inputs[slot], handle)))
            else:
                draft = self.drafts[slot]
                done = await self._follow(seq, index, slot, pending, slots[index + 1 :])
                handle = (await draft.delivered()).handle if self.policy.realigns else None
                ids = tuple(draft.ids)
                pending.append((index, Segment("placeholder", slot, ids, handle, done)))
        self.on_ready()
        self.ahead_s = sum(seq.phases.seconds.values())
        seq.hurry(READY)
        await self._flush(seq, pending, last=True)

    async def _follow(
        self,
        seq: EngineSequence,
        index: int,
        name: str,
        pending: list[tuple[int, Segment]],
        later: list[Segment | str],
    ) -> int:
        """Compute leading tokens of a message while it is written; returns how many there are.

        They are checked against the draft at every turn, and taken back where it has changed.
        """
        draft, done = self.drafts[name], list[int]()
        while True:
            fresh = 0
            if draft.sealed or draft.followable:
                keep = common_prefix(done, draft.ids)
                if keep < len(done):
                    await self._take_back(seq, index, len(done) - keep)
                    del done[keep:]
                fresh = self.policy.leading(len(draft.ids), draft.most) - len(done)
            if draft.sealed:
                return len(done)
            if pending and self._early:
                await self._flush(seq, pending)
                continue
            open_later = [self.drafts[s] for s in later if isinstance(s, str) and s in self.drafts]
            arrives_last = all(draft.remaining >= other.remaining for other in open_later)
            fine = LEADING if self.policy.realigns else FINE
            chunk = fine if arrives_last else COARSE
            if fresh >= chunk and self._early:
                piece = tuple(draft.ids[len(done) : len(done) + fresh // chunk * chunk])
                segment = Segment("placeholder", name, piece)
                await self._extend(seq, [(index, segment)], [FOLLOWED], settle=False)
                done += piece
            else:
                await draft.change()

    @property
    def _early(self) -> bool:
        """Whether what is known goes into the row before the last input has come."""
        return self.policy.ahead and not self.patient

    async def _flush(
        self, seq: EngineSequence, pending: list[tuple[int, Segment]], *, last: bool = False
    ) -> None:
        """Extend the row by everything that is known, and empty `pending`."""
        survey = await surveyed(
            seq,
            [segment for _, segment in pending],
            self.policy,
            last=last,
        )
        self.base_tokens += survey.base_tokens
        plan = self.policy.plan(survey.facts)
        if plan.whole and not (last and seq.length == 0):
            self.patient = True
            raise StartOver
        self.plans.append(plan)
        pieces = [(index, s) for (index, _), s in zip(pending, survey.segments, strict=True)]
        start = seq.length
        ending = self.answer if last else None
        await self._extend(seq, pieces, plan.steps, answer=ending)
        await self._lend(seq, survey.segments, start)
        pending.clear()

    async def _extend(
        self,
        seq: EngineSequence,
        pieces: Sequence[tuple[int, Segment]],
        steps: Sequence[Step],
        *,
        settle: bool = True,
        answer: Answer | None = None,
    ) -> None:
        """Put pieces of the slots at their indices into the row, and into the books."""
        segments = [segment for _, segment in pieces]
        await seq.reserve(seq.length + sum(len(s.rest) for s in segments) + self.room)
        done = await seq.extend(segments, steps, settle=settle, answer=answer)
        self.account.add([index for index, _ in pieces], segments, done, time.perf_counter())

    async def _lend(self, seq: EngineSequence, segments: Sequence[Segment], start: int) -> None:
        """Lend what was just read, from slot `start` on, unless an earlier attempt has."""
        for segment in segments:
            loan = self.lends.get(segment.name) if segment.kind == "placeholder" else None
            if loan and not loan.settled:
                loan.settle(await seq.lend(start, len(segment), loan.uses))
            start += len(segment.rest)

    async def _take_back(self, seq: EngineSequence, index: int, tokens: int) -> None:
        await seq.truncate(seq.length - tokens)
        self.account.redone += self.account.entries[index].remove(tokens)


async def surveyed(
    seq: EngineSequence,
    segments: Sequence[Segment],
    policy: Policy,
    *,
    last: bool = True,
) -> Survey:
    """What `policy` needs to plan these segments: base KV and verdicts only if it realigns."""
    if policy.realigns:
        return await seq.survey(segments, literals=policy.literals, last=last)
    facts = tuple(Fact(s.kind, s.name, len(s)) for s in segments)
    return Survey(tuple(segments), facts, 0)
