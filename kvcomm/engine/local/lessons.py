"""Lessons: what computed prompts teach the offset models, when nobody is in a hurry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvcomm.engine import realign
from kvcomm.engine.clock import done_at
from kvcomm.engine.local.bases import Bases, model_label
from kvcomm.engine.local.commands import Extend
from kvcomm.engine.local.memory import release_unused
from kvcomm.engine.local.state import Placed, SequenceState
from kvcomm.engine.realign import Base
from kvcomm.kv import KV
from kvcomm.prompt import Segment
from kvcomm.reuse.offsets import Offsets
from kvcomm.reuse.policy import Dense, ReuseOptions
from kvcomm.reuse.state import learned_by

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Lesson:
    """What a computed sequence teaches: a family of offset models the placeholders at `indices`.

    With `reads` its inputs go to the segment cache, too. `retained` are the keys of base KV that is
    kept for it.
    """

    seq: SequenceState
    indices: Sequence[int]
    family: str
    borrowed: bool
    retained: Sequence[str] = ()
    reads: bool = False

    @property
    def stem(self) -> str:
        """The name under which it is learned."""
        return learned_by(self.seq.call.template, self.seq.call.namespace)


class Lessons:
    """The lessons that wait. A sequence stays until its lesson is over."""

    def __init__(self, bases: Bases, offsets: Offsets, device: torch.device) -> None:
        self._bases = bases
        self._offsets = offsets
        self._device = device
        self._waiting: list[Lesson] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, seq: SequenceState, segments: Sequence[Segment], offsets: str) -> None:
        """Note what a sequence teaches: what its plans asked for, or the family `offsets`.

        Inputs among its `segments` go to the segment cache, as far as it shares them.
        """
        if seq.learn:
            lesson = self._planned(seq)
        elif segments and seq.realigned_from is None:
            lesson = self._read(seq, segments, offsets)
            lesson.reads = seq.call.shares
        else:
            return
        if lesson.indices or lesson.reads:
            self._waiting.append(lesson)

    def of(self, seq: SequenceState) -> bool:
        """Whether a sequence has something to teach."""
        return any(lesson.seq is seq for lesson in self._waiting)

    def learn(self, stem: str = "") -> list[SequenceState]:
        """Learn all of a template, or the oldest lesson; returns whose lessons are over."""
        over = [x for x in self._waiting if x.stem == stem] if stem else self._waiting[:1]
        for lesson in over:
            try:
                self._learn(lesson)
            except Exception:
                log.exception("what `%s` read could not be learned", lesson.seq.call.node)
            self._over(lesson)
            self._waiting.remove(lesson)
        return [lesson.seq for lesson in over]

    def drop(self, seq: SequenceState) -> None:
        """What a sequence would teach is lost."""
        for lesson in [lesson for lesson in self._waiting if lesson.seq is seq]:
            self._waiting.remove(lesson)
            self._over(lesson)

    def _learn(self, lesson: Lesson) -> None:
        """Teach offset models what a computed sequence shows."""
        seq = lesson.seq
        if seq.realigned_from is not None:
            raise ValueError("offsets can only be observed in a sequence that was computed")
        began = done_at(self._device)
        for index in lesson.indices:
            placed = seq.placed[index]
            kv = self._bases.segments.get(placed.key) if placed.key else None
            if kv is None or not placed.covered:
                continue
            truth = seq.position_free([placed.start + i for i in placed.covered])
            name = model_label(seq, placed.segment, lesson.family, lesson.borrowed)
            model = self._offsets.named(lesson.family, lesson.stem, name)
            literal = self._literal_behind(seq, index)
            realign.observe(model, truth, Base(kv, placed.covered), literal)
            self._offsets.learned(lesson.stem)
        self._offsets.trim()
        if lesson.reads:
            self._bases.gather(seq)
        release_unused(self._device)
        seq.phases.add("observe", done_at(self._device) - began)

    def teach(self, seq: SequenceState, family: str) -> None:
        """Teach a family all placeholders of a computed sequence that have base KV."""
        borrowed = seq.call.reuse.bases == "borrowed"
        self._learn(Lesson(seq, _taught(seq), family, borrowed, reads=borrowed))

    def _planned(self, seq: SequenceState) -> Lesson:
        """What the plans of a computed prompt want learned."""
        options = seq.call.reuse
        return self._lesson(seq, seq.learn, options.offsets, options.bases == "borrowed")

    def _read(self, seq: SequenceState, segments: Sequence[Segment], family: str) -> Lesson:
        """What a computed prompt of these segments teaches a family, if there is one."""
        if not family:
            return Lesson(seq, (), family, True)
        look = Extend(seq, [], Dense("lesson", ReuseOptions(bases="borrowed")))
        for segment in segments:
            placed = seq.placed.get(segment.index)
            if placed is None or segment.kind != "placeholder":
                continue
            found = self._bases.find(look, segment)
            if found.base is None or found.key is None:
                continue
            covered = found.base.covered
            seq.placed[segment.index] = Placed(segment, placed.start, found.key, covered)
        return self._lesson(seq, _taught(seq), family, True)

    def _lesson(
        self, seq: SequenceState, indices: Sequence[int], family: str, borrowed: bool
    ) -> Lesson:
        """A lesson whose base KV is kept until it is over: its readers may let go before."""
        retained = [key for index in indices if (key := seq.placed[index].key) is not None]
        for key in retained:
            self._bases.segments.retain(key)
        return Lesson(seq, indices, family, borrowed, retained)

    def _over(self, lesson: Lesson) -> None:
        """A lesson is learned, or never will be: let go of its base KV."""
        for key in lesson.retained:
            self._bases.segments.release(key)

    def _literal_behind(self, seq: SequenceState, index: int) -> tuple[KV, KV] | None:
        """Truth and base KV of the literal behind a placeholder, where it has base KV."""
        after = seq.placed.get(index + 1)
        if after is None or after.segment.kind != "literal" or after.key is None:
            return None
        kv = self._bases.segments.get(after.key)
        if kv is None:
            return None
        return seq.position_free(range(after.start, after.start + len(after.segment))), kv


def _taught(seq: SequenceState) -> list[int]:
    """The placeholders of a sequence that have base KV."""
    return [i for i, p in seq.placed.items() if p.segment.kind == "placeholder" and p.covered]
