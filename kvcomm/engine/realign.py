"""Base KV, offsets and truth of one call: what realigning needs beside the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from kvcomm.engine.base import Call, Phases, Survey
from kvcomm.engine.clock import done_at
from kvcomm.engine.rows import Row
from kvcomm.kv import KV, content_key
from kvcomm.kv.store import NEVER
from kvcomm.message import Handle
from kvcomm.prompt import Segment
from kvcomm.reuse.offsets import OffsetModel
from kvcomm.reuse.plan import Fact, Step
from kvcomm.reuse.state import learned_by

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine

NOT_LENT = "no earlier reader lent its KV"


class Realigner:
    """Finds base KV for the segments of one call, predicts their offsets, and learns from truth.

    All but `survey` runs on the engine's thread.
    """

    def __init__(self, engine: LocalEngine, call: Call, phases: Phases) -> None:
        self._engine = engine
        self._call = call
        self._phases = phases
        self._device = engine.network.device
        self.segments: list[Segment] = []
        self._absent: dict[int, str] = {}  # why segments have no base KV that were to have it

    async def survey(self, segments: Sequence[Segment], *, literals: bool, last: bool) -> Survey:
        """Handles on base KV, made where it is not borrowed, and what the offset models say.

        The segments follow those surveyed before; `last` says that the prompt ends with them.
        """
        engine, call, space = self._engine, self._call, self._call.namespace
        template = await engine.bases.of_template(call.template, space) if literals else None
        cost = template.tokens if template else 0
        found: list[Segment] = []
        for number, segment in enumerate(segments, len(self.segments)):
            handle, absent = segment.handle, ""
            if segment.kind == "literal" and template:
                index = int(segment.name.rpartition(" ")[2])
                handle, absent = _whole(template.keys[index], len(segment)), template.absent
            elif (
                segment.kind == "placeholder"
                and segment.name not in call.messages
                and not call.borrows
            ):
                base = await engine.bases.of_text(segment.ids, space)
                (key,) = base.keys
                engine.store.expect(key, self._call.next_uses.get(segment.name, NEVER))
                cost += base.tokens
                handle, absent = _whole(key, len(segment)), base.absent
            if absent:
                self._absent[number] = absent
            found.append(replace(segment, handle=handle))
        first = len(self.segments)
        self.segments += found
        facts = await engine.call(lambda: self._facts(first, last))
        return Survey(tuple(found), facts, cost)

    def _facts(self, first: int, ends: bool) -> tuple[Fact, ...]:
        began = done_at(self._device)
        facts: list[Fact] = []
        start, held = sum(map(len, self.segments[:first])), self._prefix()
        for index in range(first, len(self.segments)):
            segment = self.segments[index]
            kv = self._base(segment)
            covered = tuple(segment.handle.positions) if segment.handle and kv is not None else ()
            verdict = None
            if segment.kind == "placeholder" and kv is not None and self._call.offsets:
                verdict = self.model(index).verdict(kv)
            tokens = len(segment)
            prefix = min(max(held - start, 0), tokens)
            fact = Fact(
                segment.kind,
                segment.name,
                tokens,
                covered,
                verdict,
                prefix,
                last=ends and index == len(self.segments) - 1,
                done=segment.done,
            )
            absent = NOT_LENT if self._borrowed(segment) else self._absent.get(index)
            facts.append(replace(fact, absent=absent) if absent else fact)
            start += tokens
        self._phases.add("offsets", done_at(self._device) - began)
        return tuple(facts)

    def _borrowed(self, segment: Segment) -> bool:
        return segment.kind == "placeholder" and self._call.borrowed(segment.name)

    def _prefix(self) -> int:
        """The tokens from the prompt's start that the prefix cache holds."""
        if not self._call.reads_prefix:
            return 0
        ids = [i for segment in self.segments for i in segment.ids]
        match = self._engine.prefix.match(ids, self._call.namespace)
        return match[1] if match else 0

    def model(self, index: int, family: str | None = None) -> OffsetModel:
        """The offset model of the placeholder at `index`."""
        number = sum(s.kind == "placeholder" for s in self.segments[:index])
        template = learned_by(self._call.template, self._call.namespace)
        name = self.segments[index].name
        return self._engine.offsets.of(
            family or self._call.offsets, template, name, number, read=self._call.borrowed(name)
        )

    def _base(self, segment: Segment, *, check: bool = False) -> KV | None:
        handle = segment.handle
        return self._engine.store.get(handle.key, check=check) if handle else None

    def fill(self, row: Row, segment: Segment, step: Step) -> tuple[list[int] | None, str]:
        """Append the rest of a segment, realigned where it is covered and not computed.

        Deviating positions are those of the largest predicted offset. Returns the positions to
        compute and the reason; None and why when the segment can no longer be realigned, and then
        nothing was written.
        """
        done = segment.done
        base = self._base(segment, check=True)
        if base is None or segment.handle is None:
            why = self._engine.store.why(segment.handle.key) if segment.handle else "it has no KV"
            return None, f"computed, {why}; planned: {step.reason}"
        began = done_at(self._device)
        try:
            offset = self._offset(len(row) - done, segment, base) if step.corrected else None
        except ValueError as error:
            return None, f"computed, {error}; planned: {step.reason}"
        predicted = done_at(self._device)
        self._phases.add("offsets", predicted - began)
        covered = segment.handle.positions
        there = set(range(done))
        computed = there.union(step.positions or (), set(range(len(segment))).difference(covered))
        if step.deviating and offset is not None:
            computed |= _most(_size(offset), covered, computed, step.deviating)
        keep = [i for i, position in enumerate(covered) if position not in computed]
        # One copy at a time: a long input's KV is large.
        kv = base if offset is None else base + offset
        del offset
        if len(keep) < len(base):
            kv = kv.take(keep)
        rotating = row.fill(segment.rest, [covered[i] - done for i in keep], kv)
        self._phases.add("rotate", rotating)
        self._phases.add("fill", done_at(self._device) - predicted - rotating)
        return sorted(computed - there), step.reason

    def _index(self, start: int, segment: Segment) -> int:
        """Which surveyed segment goes in at slot `start`: of equal ones the nearest.

        By value, because a replica's segments have come over a wire.
        """
        begins = accumulate(map(len, self.segments), initial=0)
        found = [
            (abs(b - start), i)
            for i, (b, s) in enumerate(zip(begins, self.segments, strict=False))
            if s == segment
        ]
        return min(found)[1]

    def _offset(self, start: int, segment: Segment, base: KV) -> KV | None:
        index = self._index(start, segment)
        if segment.kind == "placeholder":
            return self.model(index).predict(base)
        before = self.segments[index - 1] if index else None
        if before is None or before.kind != "placeholder":
            return None
        neighbour = self._base(before)
        if neighbour is None:
            return None
        return self.model(index - 1).predict_literal(neighbour, len(segment))

    def observe(self, row: Row, index: int, family: str | None = None) -> None:
        """Teach its offset model the placeholder at `index`, from a computed row."""
        if not row.exact:
            raise ValueError("offsets can only be observed in a row that was computed")
        began = done_at(self._device)
        self._observe(row, index, family)
        self._engine.offsets.trim()
        self._phases.add("observe", done_at(self._device) - began)

    def with_first_layers(
        self, row: Row, segments: Sequence[Segment], layers: int
    ) -> list[tuple[Segment, tuple[float, ...]]]:
        """See `LocalSequence.with_first_layers`."""
        found: list[tuple[Segment, tuple[float, ...]]] = []
        start = 0
        for segment in segments:
            handle, base = segment.handle, self._base(segment)
            deviations: tuple[float, ...] = ()
            if handle is not None and base is not None:
                true = row.position_free([start + i for i in handle.positions])
                pairs = (true.keys, base.keys), (true.values, base.values)
                gap = [one[layers - 1] - other[layers - 1] for one, other in pairs]
                deviations = tuple(torch.cat(gap).float().square().sum(dim=(0, 2)).tolist())
                for one, other in pairs:
                    one[layers:] = other[layers:]
                key = content_key(handle.key, "first layers", layers, start, row.ids)
                self._engine.store.put(key, true)
                segment = replace(segment, handle=replace(handle, key=key))
            found.append((segment, deviations))
            start += len(segment)
        return found

    def _observe(self, row: Row, index: int, family: str | None) -> None:
        segment = self.segments[index]
        base = self._base(segment)
        if base is None or segment.handle is None:
            return
        start = sum(map(len, self.segments[:index]))
        offset = row.position_free([start + i for i in segment.handle.positions])
        offset -= base
        literal = base.slice(0, 0)
        after = self.segments[index + 1] if index + 1 < len(self.segments) else None
        if after is not None and after.kind == "literal":
            literal_base = self._base(after)
            if literal_base is not None:
                begin = start + len(segment)
                literal = row.position_free(range(begin, begin + len(after))) - literal_base
        self.model(index, family).observe(base, offset, literal)
        self._engine.offsets.learned(learned_by(self._call.template, self._call.namespace))


def _size(offset: KV) -> torch.Tensor:
    """How large the offset of every token is, `[tokens]`: each layer counts alike."""
    total = torch.zeros(len(offset), device=offset.keys.device)
    for part in (offset.keys[1:], offset.values[1:]):
        size = part.float().square().sum(dim=(1, 3))  # [layers - 1, tokens]
        total += (size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)).sum(dim=0)
    return total


def _most(size: torch.Tensor, covered: Sequence[int], computed: set[int], count: int) -> set[int]:
    """The `count` covered positions with the largest `size` that are not computed anyway."""
    order = torch.argsort(size, descending=True).tolist()
    free = [covered[i] for i in order if covered[i] not in computed]
    return set(free[:count])


def _whole(key: str, tokens: int) -> Handle:
    return Handle(key, tokens, ((0, tokens),) if tokens else (), exact=True)
