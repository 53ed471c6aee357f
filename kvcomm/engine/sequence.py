"""One row of the local engine: what the runtime does to it, step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from kvcomm.engine.base import Answer, Call, Extended, Phases, Survey, Token
from kvcomm.engine.dense import check_capacity
from kvcomm.engine.loop import Decoding, Work
from kvcomm.engine.placement import Piece, Placement
from kvcomm.engine.sampling import Sampler
from kvcomm.kv import KV, content_key
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.offsets import OffsetModel
from kvcomm.reuse.plan import Fact, Step

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine


class LocalSequence:
    """One row of the local engine; see `kvcomm.engine.base.EngineSequence` for the contract."""

    def __init__(self, engine: LocalEngine, call: Call) -> None:
        self.engine = engine
        self.phases = Phases()
        self._call = call
        self._priority = call.priority
        self._row = engine.new_row(call.capacity)
        self._tokens: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        self._surveyed: tuple[Segment, ...] = ()
        self._starts: list[int] = []
        self._answer_start = 0
        self._decoding: Decoding | None = None

    @property
    def length(self) -> int:
        """Filled slots."""
        return len(self._row)

    @property
    def exact(self) -> bool:
        """Whether everything in the row was computed from computed KV."""
        return self._row.exact

    def hurry(self, priority: int) -> None:
        """Change the sequence's priority."""
        self._priority = priority
        self.engine.loop.wake()

    async def survey(self, segments: Sequence[Segment]) -> Survey:
        """Find or make base KV for every segment, and ask the anchor pools about it."""
        template, space = self._call.template, self._call.namespace
        keys, cost = await self.engine.template_base(template, space)
        found: list[Segment] = []
        for segment in segments:
            handle = segment.handle
            if segment.kind == "literal":
                index = int(segment.name.rpartition(" ")[2])
                handle = _whole(keys[index], len(segment))
            elif handle is None and segment.ids and segment.name not in self._call.messages:
                key, tokens = await self.engine.text_base(segment.ids, space)
                cost += tokens
                handle = _whole(key, len(segment))
            found.append(Segment(segment.kind, segment.name, segment.ids, handle))
        self._surveyed = tuple(found)
        facts = await self.engine.call(self._facts)
        return Survey(self._surveyed, facts, cost)

    def _facts(self) -> tuple[Fact, ...]:
        facts = []
        began = time.perf_counter()
        for index, segment in enumerate(self._surveyed):
            kv = self.engine.store.get(segment.handle.key) if segment.handle else None
            covered = tuple(segment.handle.positions) if segment.handle and kv is not None else ()
            verdict = None
            if segment.kind == "placeholder" and kv is not None:
                verdict = self._model_of(index).verdict(kv)
            facts.append(
                Fact(
                    segment.kind,
                    segment.name,
                    len(segment),
                    covered,
                    verdict,
                    last=index == len(self._surveyed) - 1,
                )
            )
        self.phases.add("offsets", time.perf_counter() - began)
        return tuple(facts)

    def _model_of(self, index: int) -> OffsetModel:
        """The offset model of the surveyed placeholder at `index`."""
        number = sum(s.kind == "placeholder" for s in self._surveyed[:index])
        return self.engine.offsets.of(self._call.template.fingerprint, number)

    async def extend(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        *,
        settle: bool = True,
        answer: Answer | None = None,
    ) -> list[Extended]:
        """Append segments: fill what is reused, then compute the rest in one go."""
        if answer is not None:
            self._decoding = self._prepare(answer)
        placement, work = await self.engine.call(
            lambda: self._place(segments, steps, settle, answer is not None)
        )
        await self.engine.finish(work)
        return placement.report()

    def _place(
        self, segments: Sequence[Segment], steps: Sequence[Step], settle: bool, answers: bool
    ) -> tuple[Placement, Work]:
        """Fill the row and queue what has to be computed; runs on the engine's thread."""
        row = self._row
        adopts = self._call.reads_prefix and row.exact
        placement = Placement(row, len(row), answers)
        for segment, step in zip(segments, steps, strict=True):
            start, positions, reason = len(row), None, step.reason
            self._starts.append(start)
            if step.way == "realign":
                positions, reason = self._fill(segment, step)
            if positions is None:
                row.ids += segment.ids
            placement.pieces.append(Piece(start, len(segment), positions, reason))
        self._answer_start = len(row)

        def begin() -> Sequence[int]:
            if adopts:
                began = time.perf_counter()
                placement.adopt(self.engine.prefix, self._call.namespace)
                self.phases.add("fill", time.perf_counter() - began)
            return placement.slots()

        def done(logits: torch.Tensor | None) -> None:
            if settle:
                self._settle()
            if answers and self._decoding is not None:
                assert logits is not None
                self._decoding.logits = logits
                self.engine.loop.decode(self._decoding)

        work = Work(row, begin, lambda: self._priority, answers, self.phases, done)
        return placement, self.engine.loop.compute(work)

    def _prepare(self, answer: Answer) -> Decoding:
        running, tokens = asyncio.get_running_loop(), self._tokens
        return Decoding(
            self._row,
            Sampler(answer.sampling, answer.seed),
            self.engine.stop | frozenset(answer.sampling.stop),
            lambda item: _deliver(running, tokens, item),
            self.phases,
        )

    def _fill(self, segment: Segment, step: Step) -> tuple[list[int] | None, str]:
        """Realign the covered positions that are not computed.

        Returns the positions to compute and the reason; None and why when the segment can no
        longer be realigned, and then nothing was written.
        """
        assert segment.handle is not None
        base = self.engine.store.get(segment.handle.key)
        if base is None:
            return None, f"computed, its KV has left the store; planned: {step.reason}"
        computed = set(step.positions or ())
        covered = segment.handle.positions
        computed |= set(range(len(segment))) - set(covered)
        keep = [i for i, position in enumerate(covered) if position not in computed]
        began = time.perf_counter()
        try:
            offset = self._offset(segment, base, len(self._starts) - 1)
        except ValueError as error:
            return None, f"computed, {error}; planned: {step.reason}"
        predicted = time.perf_counter()
        self.phases.add("offsets", predicted - began)
        moved = base if offset is None else base + offset
        kv = moved if len(keep) == len(base) else moved.take(keep)
        self._row.fill(segment.ids, [covered[i] for i in keep], kv)
        self.phases.add("fill", time.perf_counter() - predicted)
        return sorted(computed), step.reason

    def _offset(self, segment: Segment, base: KV, index: int) -> KV | None:
        if segment.kind == "placeholder":
            return self._model_of(index).predict(base)
        before = self._surveyed[index - 1] if index else None
        if before is None or before.kind != "placeholder" or before.handle is None:
            return None
        neighbour = self.engine.store.get(before.handle.key)
        if neighbour is None:
            return None
        return self._model_of(index - 1).predict_literal(neighbour, len(segment))

    async def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots by moving into a larger slab."""
        if capacity <= self._row.slab.capacity:
            return
        check_capacity(
            replace(self._call, capacity=capacity), self.engine.model, self.engine.max_context
        )

        def move() -> None:
            slab = self.engine.new_slab(capacity)
            slab.copy_from(self._row.slab, 0, len(self._row))
            self._row.slab = slab

        await self.engine.call(move)

    async def settle(self) -> None:
        """Everything in the row is final: offer it to the prefix cache."""
        await self.engine.call(self._settle)

    def _settle(self) -> None:
        row = self._row
        row.settled = len(row)
        if self._call.feeds_prefix and row.exact:
            self.engine.prefix.insert(
                row.slab, row.ids, exact=row.exact, namespace=self._call.namespace
            )

    async def truncate(self, length: int) -> None:
        """Forget the slots from `length` on."""
        await self.engine.call(lambda: self._row.truncate(length))
        self._starts = [start for start in self._starts if start < length]

    async def decode(self) -> AsyncIterator[Token]:
        """The answer's tokens as they are sampled."""
        while True:
            item = await self._tokens.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if item.last:
                return

    async def publish(self, message: Outgoing, consumers: int) -> Handle | None:
        """A handle on the decoded KV of a message, pinned once for each consumer."""
        spans = []
        slots: list[int] = []
        for span in message.spans:
            # The last sampled token was never computed: it has no slot.
            held = min(span.length, len(self._row) - self._answer_start - span.source)
            if held > 0:
                spans.append((span.start, span.start + held))
                begin = self._answer_start + span.source
                slots += range(begin, begin + held)
        if not slots:
            return None
        row = self._row
        lineage = () if row.exact else (next(self.engine.nonce),)
        key = content_key(
            self.engine.fingerprint, self._call.namespace, "message", row.ids, slots, lineage
        )
        layers, heads, _, dim = row.slab.keys.shape
        nbytes = 2 * layers * heads * len(slots) * dim * row.slab.keys.element_size()
        kept = self.engine.store.put_recipe(
            key, lambda: row.position_free(slots), nbytes, consumers
        )
        return Handle(key, len(message.ids), tuple(spans), row.exact) if kept else None

    async def observe(self, learn: Sequence[int]) -> None:
        """Every placeholder of this dense call at `learn` becomes an anchor."""
        if not self._row.exact:
            raise ValueError("offsets can only be observed in a row that was computed")

        def observe() -> None:
            began = time.perf_counter()
            for index in learn:
                self._observe(index)
            self.phases.add("observe", time.perf_counter() - began)

        await self.engine.call(observe)

    def _observe(self, index: int) -> None:
        segment = self._surveyed[index]
        assert segment.handle is not None
        base = self.engine.store.get(segment.handle.key)
        if base is None:
            return
        start = self._starts[index]
        truth = self._row.position_free([start + i for i in segment.handle.positions])
        after = self._surveyed[index + 1] if index + 1 < len(self._surveyed) else None
        literal = base.slice(0, 0)
        if after is not None and after.kind == "literal" and after.handle is not None:
            literal_base = self.engine.store.get(after.handle.key)
            if literal_base is None:
                return
            begin = self._starts[index + 1]
            literal = self._row.position_free(range(begin, begin + len(after))) - literal_base
        self._model_of(index).observe(base, truth - base, literal)

    async def close(self) -> None:
        """Give the row back."""
        if self._decoding is not None:
            self._decoding.cancelled = True
            self.engine.loop.wake()


def _deliver(
    running: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], item: Token | BaseException
) -> None:
    """Hand an item to the event loop; one that has closed meanwhile listens no longer."""
    try:
        running.call_soon_threadsafe(queue.put_nowait, item)
    except RuntimeError:
        if not running.is_closed():
            raise


def _whole(key: str, tokens: int) -> Handle:
    return Handle(key, tokens, ((0, tokens),) if tokens else (), exact=True)
