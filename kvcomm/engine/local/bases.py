"""Base KV in the segment cache: under which keys it is, what is missing, who computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvcomm.engine.local.commands import Extend
from kvcomm.engine.local.state import FoundBase, SequenceState
from kvcomm.engine.realign import Base
from kvcomm.engine.segments import ALONE, READ, Entry, SegmentCache, template_key, text_key
from kvcomm.kv import content_key
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.offsets import label_of
from kvcomm.reuse.plan import BaseKind, SegmentPlan

NOBODY = "no earlier prompt has its KV"


class MissingBase(NamedTuple):
    """Base KV to be made: that of `spans` of `ids`, one for each key."""

    keys: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[range, ...]
    shared: int = 0  # leading ids that others will begin with


class Bases:
    """Looks base KV up. `header` stands before a text that is computed alone."""

    def __init__(self, segments: SegmentCache, fingerprint: str, header: tuple[int, ...]) -> None:
        self.segments = segments
        self.header = header
        self._fingerprint = fingerprint

    def missing(self, command: Extend) -> list[MissingBase]:
        """Base KV that the policy asks for and nobody has made; `awaits` gets what is pending."""
        call, options = command.seq.call, command.policy.options
        wanted: dict[str, MissingBase] = {}
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

    def find(self, command: Extend, segment: Segment) -> FoundBase:
        """Base KV of a segment, as the command's policy wants it."""
        options = command.policy.options
        if not options.realigns:
            return FoundBase()
        if segment.kind == "placeholder" and segment.name in command.seq.call.messages:
            if segment.handle is None:
                return FoundBase()
            key = segment.handle.key
            kv = self.segments.get(key)
            if kv is None:
                return FoundBase(key=key, absent=self.segments.why(key))
            return FoundBase(Base(kv, segment.handle.positions), key, "message")
        text = self._text(command, segment)
        if text is None:
            return FoundBase()
        alone = segment.kind == "literal" or options.bases == "alone"
        entry = self.segments.find(
            text, alone=alone, here="" if alone else self._context(command, segment)
        )
        if entry is None:
            key = f"{text}.{ALONE}"
            why = command.absent.get(key) or self.segments.why(key)
            return FoundBase(absent=why if alone else NOBODY)
        kind, node, prompts = entry.kind, entry.node, len(entry.contexts)
        kv = self.segments.get(entry.key)
        if kv is None:
            return FoundBase(key=entry.key, absent=self.segments.why(entry.key))
        return FoundBase(Base(kv, range(len(segment))), entry.key, kind, node, prompts)

    def claim(self, command: Extend, plans: Sequence[SegmentPlan]) -> list[tuple[Entry, range]]:
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
            text = text_key(self._fingerprint, seq.call.namespace, segment.ids)
            context = self._context(command, segment)
            entry = self.segments.claim(f"{text}.{READ}", seq, 0, seq.call.node, context)
            if entry is not None:
                claims.append((entry, range(begin, begin + len(segment))))
        return claims

    def kinds(self, namespace: str, texts: Mapping[str, Sequence[int]]) -> dict[str, BaseKind]:
        """The kind of base KV that texts have, by name, where they have any."""
        found = {
            name: self.segments.find(text_key(self._fingerprint, namespace, ids), alone=False)
            for name, ids in texts.items()
        }
        return {name: entry.kind for name, entry in found.items() if entry is not None}

    def contexts(self, namespace: str, ids: Sequence[int]) -> int:
        """In how many contexts a text was read."""
        entry = self.segments.find(text_key(self._fingerprint, namespace, ids), alone=False)
        return len(entry.contexts) if entry is not None else 0

    def gather(self, seq: SequenceState) -> None:
        """Keep the inputs of a computed prompt, where they were read in a context that is new."""
        for placed in seq.placed.values():
            segment, stop = placed.segment, placed.start + len(placed.segment)
            if segment.kind != "placeholder" or segment.name in seq.call.messages:
                continue
            if not len(segment) or stop > seq.exact_length:
                continue
            text = text_key(self._fingerprint, seq.call.namespace, segment.ids)
            context = content_key(seq.ids[: placed.start])[:16]
            if self.segments.wants(text, context):
                kv = seq.position_free(range(placed.start, stop))
                self.segments.add(text, context, kv, seq.call.node)

    def _text(self, command: Extend, segment: Segment) -> str | None:
        """The address of a segment's text, if it is looked up by that."""
        call, options = command.seq.call, command.policy.options
        if segment.kind == "literal":
            if not options.literals:
                return None
            number = segment.name.rpartition(" ")[2]
            return f"{template_key(self._fingerprint, call.namespace, call.template)}-{number}"
        if not options.bases or segment.name in call.messages:
            return None
        return text_key(self._fingerprint, call.namespace, segment.ids)

    def _of_text(self, key: str, ids: Sequence[int]) -> MissingBase:
        whole = (*self.header, *ids)
        return MissingBase((key,), whole, (range(len(self.header), len(whole)),))

    def _of_template(self, template: Template, namespace: str) -> MissingBase:
        """The literals of a template, prefilled together with empty placeholders."""
        stem = template_key(self._fingerprint, namespace, template)
        spans = template.literal_spans()
        keys = tuple(f"{stem}-{number}.{ALONE}" for number in range(len(spans)))
        ids = tuple(i for literal in template.literals for i in literal)
        return MissingBase(keys, ids, tuple(spans), shared=len(template.literals[0]))

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


def model_label(seq: SequenceState, segment: Segment, family: str, borrowed: bool) -> str:
    """The name of a placeholder's offset model."""
    number = seq.call.template.number(segment.index)
    read = borrowed and segment.name not in seq.call.messages
    return label_of(family, segment.name, number, read=read)
