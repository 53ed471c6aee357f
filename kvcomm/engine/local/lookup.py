"""From segments to what is written and computed: look up, let the policy plan, fill.

Belongs to the engine's thread; between looking up and filling nothing else happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from kvcomm.engine import realign
from kvcomm.engine.base import Answer
from kvcomm.engine.clock import done_at
from kvcomm.engine.local.state import Answering, Piece, Placed, Prefill, SequenceState
from kvcomm.engine.realign import Base
from kvcomm.engine.segments import ALONE, NO_ROOM, Entry, SegmentCache, text_key
from kvcomm.errors import StartOver
from kvcomm.kv import KV, PrefixCache, content_key
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.offsets import OffsetModel, Offsets, label_of
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import Dense, Policy, ReuseOptions
from kvcomm.reuse.state import learned_by

NOBODY = "no earlier prompt has its KV"


@dataclass(eq=False)
class Extend:
    """The command to append segments. `future` gets what became of them.

    The prompt `ends` with them, or is answered behind them as `last` says.

    It `awaits` pending entries of the segment cache; `absent` says which bases could not be made.
    With `planning` nothing is appended: it becomes the `Plan` of what would be. `at` are offset
    models of an earlier moment, `measured` says where dense KV shows which tokens
    deviate: in so many first layers of a sequence.
    """

    seq: SequenceState
    segments: Sequence[Segment]
    policy: Policy
    last: Answer | None = None
    answering: Answering | None = None
    settle: bool = True
    ends: bool = False
    at: dict[str, OffsetModel] | None = None
    measured: tuple[SequenceState, int] | None = None
    planning: bool = False
    future: Future[Any] = field(default_factory=Future)
    awaits: list[Entry] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    base_tokens: int = 0


@dataclass(eq=False)
class Lesson:
    """What a computed sequence teaches a family of offset models: the placeholders at `indices`.

    `retained` are the keys of base KV that is kept for it.
    """

    seq: SequenceState
    indices: Sequence[int]
    family: str
    borrowed: bool
    retained: Sequence[str] = ()

    @property
    def stem(self) -> str:
        """The name under which it is learned."""
        return learned_by(self.seq.call.template, self.seq.call.namespace)


class Wanted(NamedTuple):
    """Base KV to be made: that of `spans` of `ids`, one for each key."""

    keys: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[range, ...]
    shared: int = 0  # leading ids that others will begin with


class _Found(NamedTuple):
    """A segment, the facts about it, and its base KV."""

    segment: Segment
    facts: SegmentFacts
    base: Base | None
    key: str | None
    node: str


class Lookup:
    """Everything that segments are looked up in. `header` stands before a text computed alone."""

    def __init__(
        self,
        segments: SegmentCache,
        offsets: Offsets,
        prefix: PrefixCache,
        fingerprint: str,
        header: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.segments = segments
        self.offsets = offsets
        self.prefix = prefix
        self.fingerprint = fingerprint
        self.header = header
        self.device = device

    # What has to be there before.

    def missing(self, command: Extend) -> list[Wanted]:
        """Base KV that the policy asks for and nobody has made; `awaits` gets what is pending."""
        call, options = command.seq.call, command.policy.options
        wanted: dict[str, Wanted] = {}
        command.awaits = []
        for segment in command.segments:
            text = self._text(command, segment)
            if text is None or not len(segment):
                continue
            if segment.kind == "placeholder" and options.bases == "borrowed":
                entry = self.segments.find(text, alone=False, here=self._context(command, segment))
                if entry is not None and entry.pending is not None:
                    command.awaits.append(entry)
                continue
            key = f"{text}.{ALONE}"
            if key not in self.segments:
                if segment.kind == "literal":
                    wanted[key] = self._of_template(call.template, call.namespace)
                else:
                    wanted[key] = self._of_text(key, segment.ids)
            elif (entry := self.segments.find(text, alone=True)) and entry.pending is not None:
                command.awaits.append(entry)
        return list({found.keys: found for found in wanted.values()}.values())

    def _text(self, command: Extend, segment: Segment) -> str | None:
        """The address of a segment's text, if it is looked up by that."""
        call, options = command.seq.call, command.policy.options
        if segment.kind == "literal":
            if not options.literals:
                return None
            number = segment.name.rpartition(" ")[2]
            return f"{self._stem(call.template, call.namespace)}-{number}"
        if not options.bases or segment.name in call.messages:
            return None
        return text_key(self.fingerprint, call.namespace, segment.ids)

    def _stem(self, template: Template, namespace: str) -> str:
        return content_key(self.fingerprint, namespace, "template", template.literals)

    def _of_text(self, key: str, ids: Sequence[int]) -> Wanted:
        whole = (*self.header, *ids)
        return Wanted((key,), whole, (range(len(self.header), len(whole)),))

    def _of_template(self, template: Template, namespace: str) -> Wanted:
        """The literals of a template, prefilled together with empty placeholders."""
        stem, spans, start = self._stem(template, namespace), [], 0
        for literal in template.literals:
            spans.append(range(start, start + len(literal)))
            start += len(literal)
        keys = tuple(f"{stem}-{number}.{ALONE}" for number in range(len(spans)))
        ids = tuple(i for literal in template.literals for i in literal)
        return Wanted(keys, ids, tuple(spans), shared=len(template.literals[0]))

    def _context(self, command: Extend, segment: Segment) -> str:
        """Names what stands before a segment in its own prompt."""
        if (placed := command.seq.placed.get(segment.index)) and not command.segments:
            return content_key(command.seq.ids[: placed.start])[:16]
        ids = list(command.seq.ids)
        for other in command.segments:
            if other is segment:
                break
            ids += other.rest
        at = len(ids) - segment.done
        return content_key(ids[:at])[:16]

    # Looking up, planning, filling.

    def place(self, command: Extend) -> Prefill:
        """Append the segments to the sequence, realigned as the policy plans.

        Raises `StartOver` for a plan for the whole prompt that comes too late.
        """
        seq, policy = command.seq, command.policy
        found = self._found(command)
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
        claims = self._claims(command, plan.segments)
        try:
            for number, (item, segment_plan) in enumerate(zip(found, plan.segments, strict=True)):
                before = found[number - 1] if number else None
                prefill.pieces.append(self._piece(command, item, segment_plan, before))
        except BaseException:
            for entry, _ in claims:
                self.segments.abandon(entry)
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
                self.segments.abandon(entry)
        seq.learn += [found[index].segment.index for index in plan.learn]
        return prefill

    def plan(self, command: Extend) -> Plan:
        """What the command's policy would plan now."""
        return command.policy.plan([item.facts for item in self._found(command)])

    def _claims(self, command: Extend, plans: Sequence[SegmentPlan]) -> list[tuple[Entry, range]]:
        """Entries for the inputs that are computed here, if others may want them."""
        seq, claims = command.seq, []
        start = len(seq)
        for segment, plan in zip(command.segments, plans, strict=True):
            begin = start - segment.done
            start += len(segment.rest)
            if not (seq.call.shares and segment.kind == "placeholder" and len(segment)):
                continue
            if segment.name in seq.call.messages or plan.source == "realign":
                continue
            text = text_key(self.fingerprint, seq.call.namespace, segment.ids)
            if not self.segments.wants(text):
                continue
            key = f"{text}.{self._context(command, segment)}"
            entry = self.segments.claim(key, seq, 0, seq.call.node)
            if entry is not None:
                claims.append((entry, range(begin, begin + len(segment))))
        return claims

    def _found(self, command: Extend) -> list[_Found]:
        seq, options = command.seq, command.policy.options
        began = done_at(self.device)
        ids = [*seq.ids, *(i for segment in command.segments for i in segment.rest)]
        held = 0
        if options.realigns and seq.call.reuse.reads_prefix and seq.realigned_from is None:
            match = self.prefix.match(ids, seq.call.namespace)
            held = match[1] if match else 0
        found: list[_Found] = []
        start = len(seq)
        for number, segment in enumerate(command.segments):
            begin, tokens = start - segment.done, len(segment)
            start += len(segment.rest)
            base, key, node, absent = self._base(command, segment)
            offset = None
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
            )
            if absent:
                facts = replace(facts, absent=absent)
            if command.measured and base is not None and segment.kind == "placeholder":
                base, deviations = _measured(*command.measured, base, begin)
                facts = replace(facts, deviations=deviations)
            seq.placed[segment.index] = Placed(segment, begin, key, facts.covered)
            found.append(_Found(segment, facts, base, key, node))
        if options.realigns:
            seq.phases.add("offsets", done_at(self.device) - began)
        return found

    def _base(self, command: Extend, segment: Segment) -> tuple[Base | None, str | None, str, str]:
        """Base KV of a segment, its key, the node that read it, and why there is none."""
        options = command.policy.options
        if not options.realigns:
            return None, None, "", ""
        if segment.kind == "placeholder" and segment.name in command.seq.call.messages:
            if segment.handle is None:
                return None, None, "", ""
            key = segment.handle.key
            kv = self.segments.get(key)
            absent = "" if kv is not None else self.segments.why(key)
            covered = segment.handle.positions
            return (Base(kv, covered), key, "", "") if kv is not None else (None, key, "", absent)
        text = self._text(command, segment)
        if text is None:
            return None, None, "", ""
        alone = segment.kind == "literal" or options.bases == "alone"
        entry = self.segments.find(
            text, alone=alone, here="" if alone else self._context(command, segment)
        )
        if entry is None:
            key = f"{text}.{ALONE}"
            why = command.absent.get(key) or self.segments.why(key)
            return None, None, "", why if alone else NOBODY
        node, kv = entry.node, self.segments.get(entry.key)
        if kv is None:
            return None, entry.key, "", self.segments.why(entry.key)
        return Base(kv, range(len(segment))), entry.key, node, ""

    def _model(self, command: Extend, segment: Segment) -> OffsetModel:
        """The offset model of a placeholder, of the moment that is asked for."""
        call, options = command.seq.call, command.policy.options
        label = self.label(command.seq, segment, options.offsets, options.bases == "borrowed")
        if command.at is not None and label in command.at:
            return command.at[label]
        stem = learned_by(call.template, call.namespace)
        return self.offsets.named(options.offsets, stem, label)

    def label(self, seq: SequenceState, segment: Segment, family: str, borrowed: bool) -> str:
        """The name of a placeholder's offset model."""
        slots = seq.call.template.slots()
        number = sum(isinstance(slot, str) for slot in slots[: segment.index])
        read = borrowed and segment.name not in seq.call.messages
        return label_of(family, segment.name, number, read=read)

    def _piece(
        self, command: Extend, item: _Found, plan: SegmentPlan, before: _Found | None
    ) -> Piece:
        """Append a segment: fill it where it is realigned, and say what is to be computed."""
        seq, segment = command.seq, item.segment
        begin = len(seq) - segment.done
        piece = Piece(segment, begin, plan.reason)
        seq.ids += segment.rest
        if plan.source != "realign":
            return piece
        if item.base is None:
            piece.reason = f"computed, {item.facts.absent}; planned: {plan.reason}"
            return piece
        began = done_at(seq.kv.keys.device)
        try:
            offset = self._offset(command, item, before) if plan.corrected else None
        except ValueError as error:
            piece.reason = f"computed, {error}; planned: {plan.reason}"
            return piece
        predicted = done_at(seq.kv.keys.device)
        seq.phases.add("offsets", predicted - began)
        done = realign.realign(item.base, plan, len(segment), segment.done, offset)
        del offset
        seq.write(begin, done.filled, done.kv)
        piece.positions, piece.corrected, piece.node = done.computed, plan.corrected, item.node
        return piece

    def _offset(self, command: Extend, item: _Found, before: _Found | None) -> KV | None:
        assert item.base is not None
        if item.segment.kind == "placeholder":
            model = self._model(command, item.segment)
            moment = self.label(
                command.seq,
                item.segment,
                command.policy.options.offsets,
                command.policy.options.bases == "borrowed",
            )
            command.seq.moment[moment] = model.frozen()
            return realign.placeholder_offset(model, item.base)
        if before is None or before.segment.kind != "placeholder" or before.base is None:
            return None
        model = self._model(command, before.segment)
        return realign.literal_offset(model, before.base, len(item.segment))

    # Learning.

    def learn(self, lesson: Lesson) -> None:
        """Teach offset models what a computed sequence shows."""
        seq = lesson.seq
        if seq.realigned_from is not None:
            raise ValueError("offsets can only be observed in a sequence that was computed")
        began = done_at(self.device)
        for index in lesson.indices:
            placed = seq.placed[index]
            kv = self.segments.get(placed.key) if placed.key else None
            if kv is None or not placed.covered:
                continue
            truth = seq.position_free([placed.start + i for i in placed.covered])
            label = self.label(seq, placed.segment, lesson.family, lesson.borrowed)
            model = self.offsets.named(lesson.family, lesson.stem, label)
            literal = self._literal_behind(seq, index)
            realign.observe(model, truth, Base(kv, placed.covered), literal)
            self.offsets.learned(lesson.stem)
        self.offsets.trim()
        seq.phases.add("observe", done_at(self.device) - began)

    def teach(self, seq: SequenceState, family: str) -> None:
        """Teach a family all placeholders of a computed sequence that have base KV."""
        self.learn(Lesson(seq, _taught(seq), family, seq.call.reuse.bases == "borrowed"))

    def planned(self, seq: SequenceState) -> Lesson:
        """What the plans of a computed prompt want learned."""
        options = seq.call.reuse
        return self._lesson(seq, seq.learn, options.offsets, options.bases == "borrowed")

    def lesson(self, seq: SequenceState, segments: Sequence[Segment], family: str) -> Lesson:
        """What a computed prompt of these segments teaches a family."""
        look = Extend(seq, [], Dense("lesson", ReuseOptions(bases="borrowed")))
        for segment in segments:
            placed = seq.placed.get(segment.index)
            if placed is None or segment.kind != "placeholder":
                continue
            base, key, _, _ = self._base(look, segment)
            if base is None or key is None:
                continue
            seq.placed[segment.index] = Placed(segment, placed.start, key, base.covered)
        return self._lesson(seq, _taught(seq), family, True)

    def _lesson(
        self, seq: SequenceState, indices: Sequence[int], family: str, borrowed: bool
    ) -> Lesson:
        """A lesson whose base KV is kept until it is over: its readers may let go before."""
        retained = [key for index in indices if (key := seq.placed[index].key) is not None]
        for key in retained:
            self.segments.retain(key)
        return Lesson(seq, indices, family, borrowed, retained)

    def over(self, lesson: Lesson) -> None:
        """A lesson is learned, or never will be: let go of its base KV."""
        for key in lesson.retained:
            self.segments.release(key)

    def _literal_behind(self, seq: SequenceState, index: int) -> tuple[KV, KV] | None:
        """Truth and base KV of the literal behind a placeholder, where it has base KV."""
        after = seq.placed.get(index + 1)
        if after is None or after.segment.kind != "literal" or after.key is None:
            return None
        kv = self.segments.get(after.key)
        if kv is None:
            return None
        return seq.position_free(range(after.start, after.start + len(after.segment))), kv

    def abandon(self, wanted: Wanted, command: Extend) -> None:
        """There is no room to make base KV: the segments will be computed."""
        for key in wanted.keys:
            command.absent[key] = NO_ROOM


def _taught(seq: SequenceState) -> list[int]:
    """The placeholders of a sequence that have base KV."""
    return [i for i, p in seq.placed.items() if p.segment.kind == "placeholder" and p.covered]


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
