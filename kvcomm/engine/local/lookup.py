"""From segments to what is written and computed: look up, let the policy plan, fill.

Belongs to the engine's thread; between looking up and filling nothing else happens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from kvcomm.engine import realign
from kvcomm.engine.clock import done_at
from kvcomm.engine.local.bases import Bases, model_label
from kvcomm.engine.local.commands import Extend
from kvcomm.engine.local.state import (
    FoundBase,
    Placed,
    Prefill,
    PromptPiece,
    QueryPass,
    SequenceState,
)
from kvcomm.engine.local.watch import Watch
from kvcomm.engine.realign import Base
from kvcomm.errors import StartOver
from kvcomm.kv import KV, PrefixCache
from kvcomm.prompt import Segment
from kvcomm.reuse.offsets import OffsetModel, Offsets
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.state import learned_by


class _Found(NamedTuple):
    """A segment, the facts about it, and its base KV."""

    segment: Segment
    facts: SegmentFacts
    base: FoundBase


class Lookup:
    """Places segments in sequences: what is known of them, what is planned, and what is filled."""

    def __init__(
        self, bases: Bases, offsets: Offsets, prefix: PrefixCache, device: torch.device
    ) -> None:
        self.bases = bases
        self._offsets = offsets
        self._prefix = prefix
        self._device = device

    def place(self, command: Extend) -> Prefill:
        """Append the segments to the sequence, realigned as the policy plans.

        Raises `StartOver` for a plan for the whole prompt that comes too late.
        """
        seq, policy = command.seq, command.policy
        found = self._look_up(command)
        plan = policy.plan([item.facts for item in found])
        ends = command.ends or command.last is not None
        if plan.whole and not (ends and not len(seq)):
            raise StartOver(command.base_tokens)
        adopts = seq.call.reuse.reads_prefix and seq.realigned_from is None
        prefill = Prefill(
            seq,
            len(seq),
            logits=int(command.last is not None),
            settles=command.settle,
            answers=command.last is not None,
            decision=plan.decision,
            dense=plan.dense,
            base_tokens=command.base_tokens,
            future=command.future,
        )
        claims = self.bases.claim(command, plan.segments)
        try:
            for number, (item, segment_plan) in enumerate(zip(found, plan.segments, strict=True)):
                before = found[number - 1] if number else None
                prefill.pieces.append(self._fill(command, item, segment_plan, before))
        except BaseException:
            for entry, _ in claims:
                self.bases.segments.abandon(entry)
            raise
        if command.last is not None or seq.answering is None:
            seq.prompt = len(seq)
        lead = prefill.start
        for piece in prefill.pieces:
            if piece.positions is not None:
                break
            lead = piece.start + len(piece.segment)
        # The final token of a prompt is always computed: its logits are wanted.
        prefill.adopts = lead - (prefill.answers and lead == len(seq)) if adopts else 0
        prefill.claims = [
            (entry, slots) for entry, slots in claims if slots.stop <= seq.exact_length
        ]
        for entry, slots in claims:
            if slots.stop > seq.exact_length:
                self.bases.segments.abandon(entry)
        seq.learn += [found[index].segment.index for index in plan.learn]
        if plan.chosen:
            prefill.query = _query(prefill, plan)
        return prefill

    def plan(self, command: Extend) -> Plan:
        """What the command's policy would plan now; the sequence's `moment` has what from."""
        found = self._look_up(command)
        for item in found:
            if item.base.base is not None:
                self._remember(command, item, corrected=bool(command.policy.options.offsets))
        return command.policy.plan([item.facts for item in found])

    def _look_up(self, command: Extend) -> list[_Found]:
        seq, options = command.seq, command.policy.options
        began = done_at(self._device)
        ids = [*seq.ids, *(i for segment in command.segments for i in segment.rest)]
        held = 0
        if options.realigns and seq.call.reuse.reads_prefix and seq.realigned_from is None:
            match = self._prefix.match(ids, seq.call.namespace)
            held = match[1] if match else 0
        found: list[_Found] = []
        start = len(seq)
        for number, segment in enumerate(command.segments):
            begin, tokens = start - segment.done, len(segment)
            start += len(segment.rest)
            known = command.at.bases.get(segment.index) if command.at else None
            known = known or self.bases.find(command, segment)
            base, offset = known.base, None
            if segment.kind == "placeholder" and base is not None and options.offsets:
                offset = self._model(command, segment).predictability(base.kv)
            facts = SegmentFacts(
                segment.kind,
                segment.name,
                tokens,
                tuple(base.covered) if base else (),
                offset,
                min(max(held - begin, 0), tokens),
                last=(command.ends or command.last is not None)
                and number == len(command.segments) - 1,
                done=segment.done,
                base=known.kind,
                spreads=tuple(base.kv.spreads()) if base else (),
            )
            if known.absent:
                facts = replace(facts, absent=known.absent)
            if command.measured and base is not None and segment.kind == "placeholder":
                base, deviations = _measured(*command.measured, base, begin)
                facts = replace(facts, deviations=deviations)
                known = known._replace(base=base)
            seq.placed[segment.index] = Placed(segment, begin, known.key, facts.covered)
            found.append(_Found(segment, facts, known))
        if options.realigns:
            seq.phases.add("offsets", done_at(self._device) - began)
        return found

    def _remember(self, command: Extend, item: _Found, *, corrected: bool) -> None:
        """Keep in the sequence's moment what a placeholder is realigned from, as it is."""
        segment, moment = item.segment, command.seq.moment
        if segment.kind != "placeholder":
            return
        if corrected:
            moment.models[self._name(command, segment)] = self._model(command, segment).frozen()
        if item.base.kind != "message":  # whose KV is kept by its readers
            moment.bases[segment.index] = item.base

    @staticmethod
    def _name(command: Extend, segment: Segment) -> str:
        options = command.policy.options
        return model_label(command.seq, segment, options.offsets, options.bases == "borrowed")

    def _model(self, command: Extend, segment: Segment) -> OffsetModel:
        """The offset model of a placeholder, of the moment that is asked for."""
        call, options = command.seq.call, command.policy.options
        name = self._name(command, segment)
        if command.at is not None and name in command.at.models:
            return command.at.models[name]
        stem = learned_by(call.template, call.namespace)
        return self._offsets.named(options.offsets, stem, name)

    def _fill(
        self, command: Extend, item: _Found, plan: SegmentPlan, before: _Found | None
    ) -> PromptPiece:
        """Append a segment: fill it where it is realigned, and say what is to be computed."""
        seq, segment = command.seq, item.segment
        begin = len(seq) - segment.done
        piece = PromptPiece(segment, begin, plan.reason)
        seq.ids += segment.rest
        if plan.source != "realign":
            return piece
        base = item.base.base
        if base is None:
            piece.reason = f"computed, {item.facts.absent}; planned: {plan.reason}"
            return piece
        began = done_at(seq.kv.keys.device)
        self._remember(command, item, corrected=plan.corrected)
        try:
            offset = self._offset(command, item, before) if plan.corrected else None
        except ValueError as error:
            piece.reason = f"computed, {error}; planned: {plan.reason}"
            return piece
        predicted = done_at(seq.kv.keys.device)
        seq.phases.add("offsets", predicted - began)
        done = realign.realign(base, plan, len(segment), segment.done, offset)
        del offset
        seq.write(begin, done.filled, done.kv)
        piece.positions = done.computed
        piece.corrected, piece.scale = plan.corrected, plan.scale
        piece.base, piece.node, piece.prompts = item.base.kind, item.base.node, item.base.prompts
        return piece

    def _offset(self, command: Extend, item: _Found, before: _Found | None) -> KV | None:
        base = item.base.base
        assert base is not None
        if item.segment.kind == "placeholder":
            return self._model(command, item.segment).predict(base.kv)
        behind = before.base.base if before and before.segment.kind == "placeholder" else None
        if before is None or behind is None:
            return None
        return self._model(command, before.segment).predict_literal(behind.kv, len(item.segment))


def _query(prefill: Prefill, plan: Plan) -> QueryPass | None:
    """The pass that asks a prompt what it attends to of its pooled segments, if any was filled."""
    both = zip(prefill.pieces, plan.segments, strict=True)
    pieces = [p for p, segment in both if segment.pooled and p.positions is not None]
    if not pieces:
        return None
    slots = [slot for p in pieces for slot in range(p.start, p.start + len(p.segment))]
    begin = pieces[-1].start + len(pieces[-1].segment)
    start = prefill.seq.realigned_from
    assert start is not None
    return QueryPass(Watch(slots, begin), pieces, plan.chosen, start)


def _measured(
    dense: SequenceState, layers: int, base: Base, start: int
) -> tuple[Base, tuple[float, ...]]:
    """Base KV with dense's in the first `layers`, and how far it was from that in the last one."""
    true = dense.position_free([start + i for i in base.covered])
    pairs = (true.keys, base.kv.keys), (true.values, base.kv.values)
    gap = [one[layers - 1] - other[layers - 1] for one, other in pairs]
    deviations = torch.cat(gap).float().square().sum(dim=(0, 2)).tolist()
    for one, other in pairs:
        one[layers:] = other[layers:]
    return Base(true, base.covered), tuple(deviations)
