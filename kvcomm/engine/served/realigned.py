"""Sequences on a server with kvcomm's connector: their prompts are filled with KV it has.

A plan becomes a chain of requests. Each of them is the prompt up to the end of a stretch that is
computed, and asks for one token that nobody reads; the pieces before that stretch are supplied by
the server. The last request is the whole prompt, and answers. So what is repaired in the middle is
computed over the realigned KV before it, as in an engine of our own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvcomm.engine.base import Answer, CallSpec, Extended
from kvcomm.engine.served.publishing import PublishingSequence, lessons
from kvcomm.engine.served.sequence import GROWTH
from kvcomm.engine.served.supply import Model, Named, new_name, pieces_of, predictability
from kvcomm.engine.usage import Arrival, SegmentUsage
from kvcomm.errors import ServerError, StartOver
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Plan, Predictability, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import Policy
from kvcomm.reuse.recipe import Realign
from kvcomm.vllm.protocol import OffsetQuestion, Piece, Publish, Reply, Request, salt_of

# Questions are answered when a request has run for so many tokens.
ASKING = 3


def visible(policy: Policy) -> Policy:
    """A policy as it can be done where nobody sees KV or attention: what deviates is not known.

    Leading tokens are computed instead.
    """
    if not isinstance(policy, Realign):
        return policy
    recipe = policy.recipe
    leading = recipe.leading + recipe.deviating
    seen = replace(recipe, leading=leading, deviating=0.0, query=False)
    borrows = policy.options.bases == "borrowed"
    return Realign(seen, policy.reason, policy.budget, borrows=borrows)


@dataclass
class GrowingRow:
    """One realigned prompt on the server: what it is filled with, and how far it has grown.

    The server has its first `grown` tokens. `arrivals` say how they came there; `again` of them
    were computed twice, and `missed` were to be filled, but were computed.
    """

    name: str = field(default_factory=new_name)
    pieces: list[Piece] = field(default_factory=list)
    grown: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    again: int = 0
    missed: int = 0

    def stops(self, length: int) -> list[int]:
        """The ends of the computed stretches that are followed by a piece, up to `length`."""
        found, at = [], 0
        for piece in self.pieces:
            if self.grown < piece.start <= length and piece.start > at:
                found.append(piece.start)
            at = piece.stop
        return found

    def within(self, length: int) -> tuple[Piece, ...]:
        """The pieces that begin before `length`, cut there."""
        return tuple(
            piece if piece.stop <= length else replace(piece, stop=length)
            for piece in self.pieces
            if piece.start < length
        )

    def reached(self, at: float, length: int, supplied: int) -> None:
        """The first `length` tokens are there; those from `supplied` on were computed."""
        supplied = min(max(supplied, 0), length)
        self.again += max(self.grown - supplied, 0)
        begin = max(supplied, self.grown)
        if begin > self.grown:
            self.arrivals.append(Arrival(at, begin - self.grown, 0))
        self.missed += sum(
            max(min(piece.stop, length) - max(piece.start, supplied), 0) for piece in self.pieces
        )
        if length > begin:
            self.arrivals.append(Arrival(at, length - begin, length - begin))
        self.grown = max(length, self.grown)

    def cut(self, length: int) -> GrowingRow:
        """What is left of it when the prompt ends at `length`: another one, if it is longer."""
        pieces = list(self.within(length))
        if self.grown <= length:
            self.pieces = pieces
            return self
        return GrowingRow(pieces=pieces, again=self.again + self.grown)


class RealignedSequence(PublishingSequence):
    """See `kvcomm.engine.base.EngineSequence` for the contract, and the module's text."""

    def __init__(self, engine: Any, call: CallSpec) -> None:
        super().__init__(engine, call)
        self._row = GrowingRow()
        self._filled = False  # with KV of other prompts
        self._why = ""  # nothing is filled any more

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether nothing of it is from other prompts."""
        return not self._filled

    @property
    def short(self) -> str:
        """Why the prompt is not filled as it was planned; nothing where it is."""
        missed = self._row.missed
        return self._why or (f"the server did not supply {missed} tokens" if missed else "")

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
        ends: bool = False,
    ) -> Extended:
        """Append segments; see `EngineSequence.extend`. A prompt `ends` also without an answer."""
        policy = visible(policy)
        ends = ends or last is not None
        began = time.perf_counter()
        made = await self._make(segments, policy)
        known, facts = await self._look_up(segments, policy, ends)
        plan = policy.plan(facts)
        if plan.whole and not (ends and not self._ids):
            raise StartOver(made)
        self.phases.add("offsets", time.perf_counter() - began)
        self._fits(segments)
        usage = []
        for number, (segment, step) in enumerate(zip(segments, plan.segments, strict=True)):
            before = (segments[number - 1], known[number - 1]) if number else None
            usage.append(self._fill(segment, step, known[number], before, policy))
        self._learn(segments, plan, known, policy)
        if self._filled:
            await self._grow(ends)
        if last is not None:
            self._ask(last)
        return Extended(usage, plan.decision, plan.dense, made)

    # --- what is known ---

    async def _look_up(
        self, segments: Sequence[Segment], policy: Policy, ends: bool
    ) -> tuple[list[Named | None], list[SegmentFacts]]:
        options, call = policy.options, self._call
        known: list[Named | None] = []
        whys = []
        for segment in segments:
            named, why = None, "no base KV"
            literal = segment.kind == "literal"
            if options.realigns and (options.literals or not literal) and len(segment):
                named, why = self.supply.of(call, segment, options.bases)
                if named is not None and named.pending is not None:
                    await asyncio.shield(asyncio.wrap_future(named.pending))
                    named, why = self.supply.of(call, segment, options.bases)
            known.append(named)
            whys.append(why)
        says = await self._says(segments, known, policy)
        facts, start = [], len(self._ids)
        for number, (segment, named, why) in enumerate(zip(segments, known, whys, strict=True)):
            begin = start - segment.done
            start += len(segment.rest)
            head = begin == 0 and segment.kind == "literal" and self._head(segment) is not None
            fact = SegmentFacts(
                segment.kind,
                segment.name,
                len(segment),
                named.covered if named else (),
                says[number],
                prefix=len(segment) if head else 0,
                last=ends and number == len(segments) - 1,
                done=segment.done,
                absent=why,
                base=named.kind if named else None,
            )
            facts.append(fact)
        return known, facts

    def _head(self, segment: Segment) -> Named | None:
        if not self._call.reuse.reads_prefix:
            return None
        return self.supply.get(self.supply.head(self._call.namespace, segment.ids))

    async def _says(
        self, segments: Sequence[Segment], known: Sequence[Named | None], policy: Policy
    ) -> list[Predictability | None]:
        """What the offset models say of the placeholders that have base KV.

        Families whose answer depends on the text are asked.
        """
        family, bases = policy.options.offsets, policy.options.bases
        found: list[Predictability | None] = [None] * len(segments)
        asked: list[tuple[int, OffsetQuestion]] = []
        for number, (segment, named) in enumerate(zip(segments, known, strict=True)):
            if segment.kind != "placeholder" or named is None or not family:
                continue
            model = self.supply.model(self._call, segment, family, bases)
            found[number] = self.supply.says(model)
            if not family.startswith("linear") and named.covered:
                origin = named.places[named.covered[0]]
                assert origin is not None
                asked.append(
                    (number, OffsetQuestion(model, named.name, origin, len(named.covered)))
                )
        if asked:
            questions = tuple(question for _, question in asked)
            reply = await self._tell(self._engine.header, Request(questions=questions), ASKING)
            for (number, _), told in zip(asked, reply.answers, strict=False):
                if told is not None:
                    found[number] = predictability(told)
        return found

    async def _make(self, segments: Sequence[Segment], policy: Policy) -> int:
        """Have base KV computed that the policy asks for; returns the tokens that took."""
        options, call, made = policy.options, self._call, 0
        if options.bases != "alone":
            return 0
        header = tuple(self._engine.header)
        for segment in segments:
            spans: list[tuple[str, int, int]] = []
            if segment.kind == "placeholder" and segment.name not in call.messages:
                key = self.supply.text(call.namespace, segment.ids, alone=True)
                ids = (*header, *segment.ids)
                spans = [(key, len(header), len(ids))] if len(segment) else []
            elif segment.kind == "literal" and options.literals:
                ids = tuple(i for literal in call.template.literals for i in literal)
                spans = [
                    (self.supply.literal(call, str(number)), span.start, span.stop)
                    for number, span in enumerate(call.template.literal_spans())
                    if span
                ]
            if not spans or all(self.supply.get(key) for key, _, _ in spans):
                continue
            names = [new_name() for _ in spans]
            publish = tuple(
                Publish(name, start, stop)
                for name, (_, start, stop) in zip(names, spans, strict=True)
            )
            reply = await self._tell(ids, Request(publish=publish))
            made += len(ids)
            for name, (key, start, stop) in zip(names, spans, strict=True):
                if name in reply.published:
                    self.supply.add(key, Named(name, range(stop - start), "alone", call.node))
        return made

    # --- what is filled ---

    def _fill(
        self,
        segment: Segment,
        step: SegmentPlan,
        named: Named | None,
        before: tuple[Segment, Named | None] | None,
        policy: Policy,
    ) -> SegmentUsage:
        """Append a segment, and note what it is filled with."""
        usage = self._append(segment, step.reason)
        begin, tokens = self._placed[-1][0], len(segment)
        if begin == 0 and (head := self._head(segment)) is not None and not self._why:
            self._row.pieces += pieces_of(head, 0, range(tokens), None, 1.0)
            return usage
        if step.source != "realign" or named is None or self._why:
            return replace(usage, reason=f"{step.reason}; {self._why}") if self._why else usage
        computed = {*(step.positions or ()), *range(segment.done)}
        kept = [i for i in named.covered if i not in computed]
        if not kept:
            return usage
        model: Model | None = None
        family, bases, behind = policy.options.offsets, policy.options.bases, ""
        if step.corrected and family:
            about: Segment | None = segment
            if segment.kind == "literal":  # the placeholder before it says its offset
                about, spoken = before or (None, None)
                behind = spoken.name if spoken else ""
            if about is None or (segment.kind == "literal" and not behind):
                return replace(usage, reason=f"{step.reason}; nothing says its offset")
            model = self.supply.model(self._call, about, family, bases)
        pieces = pieces_of(named, begin, kept, model, step.scale)
        self._row.pieces += [replace(piece, behind=behind) for piece in pieces]
        self._filled = True
        filled = set(kept)
        positions = tuple(i for i in range(tokens) if i not in filled)
        return replace(
            usage,
            computed=len(positions) - segment.done,
            realigned=len(kept),
            source="realign",
            positions=positions,
            corrected=step.corrected,
            scale=step.scale,
            base=named.kind,
            lender=named.node if named.kind == "borrowed" else "",
        )

    def _learn(
        self,
        segments: Sequence[Segment],
        plan: Plan,
        known: Sequence[Named | None],
        policy: Policy,
    ) -> None:
        """Note what the computed prompt teaches, where the plan asks for that."""
        starts = {segment.index: begin for begin, segment in self._placed}
        for index in plan.learn:
            segment, named = segments[index], known[index]
            if named is not None:
                model = self.supply.model(
                    self._call, segment, policy.options.offsets, policy.options.bases
                )
                after = known[index + 1 : index + 2]
                is_literal = after and segments[index + 1].kind == "literal"
                literal = after[0].name if is_literal and after[0] else ""
                self._lessons += lessons(starts[segment.index], named, model, literal)

    # --- growing ---

    async def _grow(self, ends: bool) -> None:
        """Have the server compute what is followed by a piece, stretch by stretch.

        What comes last of a prompt that is not complete yet is computed once it is long enough.
        """
        stops = self._row.stops(self.length)
        if not ends and self.length - max(stops, default=self._row.grown) >= GROWTH:
            stops.append(self.length)
        for stop in stops:
            if stop <= self._row.grown:
                continue
            began = time.perf_counter()
            row = self._row
            request = Request(row=row.name, keep=True, pieces=row.within(stop))
            try:
                ahead = not ends
                ids, salt = self._ids[:stop], salt_of(row.name)
                reply, held = await self._sent(ids, request, salt, ahead=ahead)
            except ServerError as error:
                self._give_up(f"computed, because {error}")
                return
            if reply is None:
                return  # others need the server; there will be another occasion
            row.reached(time.perf_counter(), stop, max(reply.supplied[1], held or 0))
            self.phases.add("forward", time.perf_counter() - began)
            if reply.refused:
                self._give_up(f"computed, because the server refused: {reply.refused}")
                return

    def _give_up(self, why: str) -> None:
        """The server fails at it: this prompt is computed, in a row of its own."""
        self._why = why
        self.supply.end(self._row.name)
        self._row = GrowingRow(again=self._row.again + self._row.grown)

    async def _tell(self, ids: Sequence[int], request: Request, tokens: int = 1) -> Reply:
        """Send a request that is no part of the prompt; what it computes is nobody's prefix."""
        reply, _ = await self._sent(ids, request, new_name(), tokens)
        assert reply is not None
        return reply

    # --- answering ---

    def request(self, *, keep: bool) -> Request:
        """What fills the prompt, for a request of somebody else's; whether the row stays."""
        return Request(row=self._row.name, keep=keep, pieces=tuple(self._row.pieces))

    def _request(self, publish: list[Publish]) -> Request:
        if self._filled and not self._why:
            row = self._row
            self._salt = salt_of(row.name)
            pieces = row.within(self.length - 1)
            return Request(row=row.name, pieces=pieces, publish=tuple(publish))
        if self._why:
            self._salt = new_name()
            return Request(publish=tuple(publish))
        return super()._request(publish)

    def supplied(self, reply: Reply | None, length: int) -> None:
        """A request of somebody else's has filled the prompt, so far as `reply` says."""
        told = reply.supplied[1] if reply else 0
        self._row.reached(time.perf_counter(), length, told)

    def _end(self, at: float, cached: int | None) -> None:
        if not self._filled:
            super()._end(at, cached)
            return
        planned = self._planned_end()
        self._row.reached(at, len(self._prompt), planned if cached is None else cached)
        self.arrivals = self._row.arrivals, self._row.again

    def _planned_end(self) -> int:
        """Up to where the prompt was to be supplied, where the server does not say."""
        at = self._row.grown
        for piece in self._row.within(len(self._prompt) - 1):
            if piece.start <= at < piece.stop:
                at = piece.stop
        return at

    async def truncate(self, length: int) -> None:
        await super().truncate(length)
        old = self._row
        self._row = old.cut(length)
        if self._row is not old:
            self.supply.end(old.name)

    async def close(self) -> None:
        await super().close()
        if self._filled and self._answering is None:  # nobody answers any more
            self.supply.end(self._row.name)
