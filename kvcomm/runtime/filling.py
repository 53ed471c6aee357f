"""Filling a row: the prompt goes in as its inputs become known, and the books are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvcomm.engine.base import READY, Answer, EngineSequence, Survey
from kvcomm.errors import StartOver
from kvcomm.prompt import Segment, Template, common_prefix
from kvcomm.reuse.plan import Fact, Plan
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.account import Account
from kvcomm.runtime.draft import Draft
from kvcomm.runtime.loan import Loan

# Chunks behind a message that is being written. Fine ones keep little for the moment when the
# last input is complete; they cost efficiency, so inputs that do not arrive last get coarse ones.
FINE = 16
COARSE = 64


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

        A computed message is followed while it is written; one that may be realigned is taken when
        it is done, and everything before it meanwhile. Raises `StartOver` when what is in the row
        turns out to be of no use; then the filling is patient.
        """
        pending: list[tuple[int, Segment]] = []
        slots = self.template.slots()
        for index, slot in enumerate(slots):
            if isinstance(slot, Segment):
                pending.append((index, slot))
            elif slot in self.inputs:
                loan = self.loans.get(slot) if self.policy.borrows else None
                if loan and not loan.settled:
                    await self._flush_ahead(seq, pending)
                handle = await loan.given() if loan else None
                pending.append((index, Segment("placeholder", slot, self.inputs[slot], handle)))
            elif self.policy.realigns or not self.policy.ahead:
                draft = self.drafts[slot]
                if draft.message is None:
                    await self._flush_ahead(seq, pending)
                message = await draft.delivered()
                segment = Segment("placeholder", slot, message.ids, message.handle)
                pending.append((index, segment))
            else:
                rest = await self._follow(seq, index, slot, pending, slots[index + 1 :])
                pending.append((index, Segment("placeholder", slot, rest)))
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
    ) -> tuple[int, ...]:
        """Compute a message while it is written; returns the ids that are left when it is done.

        What was computed is checked against the draft at every turn, and taken back where the
        draft has changed.
        """
        draft, done = self.drafts[name], list[int]()
        while True:
            fresh = 0
            if draft.sealed or draft.followable:
                keep = common_prefix(done, draft.ids)
                if keep < len(done):
                    await self._take_back(seq, index, len(done) - keep)
                    del done[keep:]
                fresh = len(draft.ids) - len(done)
            if draft.sealed:
                return tuple(draft.ids[len(done) :])
            if pending:
                await self._flush(seq, pending)
                continue
            open_later = [self.drafts[s] for s in later if isinstance(s, str) and s in self.drafts]
            arrives_last = all(draft.remaining >= other.remaining for other in open_later)
            chunk = FINE if arrives_last else COARSE
            if fresh >= chunk:
                piece = tuple(draft.ids[len(done) : len(done) + fresh // chunk * chunk])
                await self._flush(seq, [(index, Segment("placeholder", name, piece))], settle=False)
                done += piece
            else:
                await draft.change()

    async def _flush_ahead(self, seq: EngineSequence, pending: list[tuple[int, Segment]]) -> None:
        """There is time until the next input comes: do what is known, if that is wanted."""
        if pending and self.policy.ahead and not self.patient:
            await self._flush(seq, pending)

    async def _flush(
        self,
        seq: EngineSequence,
        pending: list[tuple[int, Segment]],
        *,
        last: bool = False,
        settle: bool = True,
    ) -> None:
        """Extend the row by everything that is known, and empty `pending`."""
        survey = await surveyed(
            seq,
            [segment for _, segment in pending],
            self.policy,
            last=last,
        )
        segments = survey.segments
        self.base_tokens += survey.base_tokens
        plan = self.policy.plan(survey.facts)
        if plan.whole and not (last and seq.length == 0):
            self.patient = True
            raise StartOver
        self.plans.append(plan)
        await seq.reserve(seq.length + sum(map(len, segments)) + self.room)
        ending = self.answer if last else None
        start = seq.length
        done = await seq.extend(
            segments, plan.steps, pilot=plan.pilot, settle=settle, answer=ending
        )
        self.account.add([index for index, _ in pending], segments, done, time.perf_counter())
        if settle:
            await self._lend(seq, segments, start)
        pending.clear()

    async def _lend(self, seq: EngineSequence, segments: Sequence[Segment], start: int) -> None:
        """Lend what was just read, from slot `start` on, unless an earlier attempt has."""
        for segment in segments:
            loan = self.lends.get(segment.name) if segment.kind == "placeholder" else None
            if loan and not loan.settled:
                loan.settle(await seq.lend(start, len(segment), loan.uses))
            start += len(segment)

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
