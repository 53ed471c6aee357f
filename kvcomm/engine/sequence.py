"""One row of the local engine: what the runtime does to it, step by step."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from kvcomm.engine.base import (
    READY,
    Answer,
    Call,
    Divergence,
    EngineSequence,
    Extended,
    Phases,
    Survey,
    Token,
)
from kvcomm.engine.beginnings import Beginning
from kvcomm.engine.clock import done_at
from kvcomm.engine.divergence import divergence
from kvcomm.engine.loop import Decoding, Work, post
from kvcomm.engine.placement import Piece, Placement
from kvcomm.engine.realign import Realigner
from kvcomm.engine.room import Ticket
from kvcomm.engine.rows import Tail
from kvcomm.engine.sampling import Sampler
from kvcomm.errors import KvcommError, NotANumber, Preempted
from kvcomm.kv import content_key
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Step

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine


class LocalSequence:
    """One row of the local engine; see `kvcomm.engine.base.EngineSequence` for the contract."""

    arrived = None

    def __init__(self, engine: LocalEngine, call: Call, ticket: Ticket | None = None) -> None:
        self.engine = engine
        self.ticket = ticket
        self._gave_way = False
        self._lost = asyncio.Event()
        self._work: Work | None = None
        self.phases = Phases()
        self._call = call
        self._priority = call.priority
        self._row = engine.new_row(call.capacity)
        self._tokens: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        self._realigner = Realigner(engine, call, self.phases)
        self._prompt = 0  # where the prompt ends and the answer begins
        self._decoding: Decoding | None = None
        self._lent: list[str] = []  # the keys under which its KV is read by others

    @property
    def _feeds_prefix(self) -> bool:
        return self._call.feeds_prefix or self._call.goes_on

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
        if self.ticket:
            self.engine.room.hurry(self.ticket, priority)
        self.engine.loop.wake()

    def give_way(self, running: asyncio.AbstractEventLoop) -> None:
        """A call that is ready needs the room: what is under way fails with `Preempted`.

        The row may just as well be waiting for a message, even one of the very call that needs the
        room: `lost` tells its owner, on the event loop `running`.
        """
        self._gave_way = True
        self.engine.loop.submit(self._stop)
        post(running, self._lost.set)

    async def lost(self) -> None:
        """Wait until the row has lost its room."""
        await self._lost.wait()

    def _stop(self) -> None:
        if self._work is not None and not self._work.future.done():
            self._work.cancelled = True
            self._work.fail(self._preempted())

    def _preempted(self) -> Preempted:
        return Preempted(f"the row of `{self._call.node}` gave way to a call that was ready")

    async def survey(
        self,
        segments: Sequence[Segment],
        *,
        literals: bool = True,
        last: bool = True,
    ) -> Survey:
        """Find base KV for every segment, and ask the offset models about them."""
        return await self._realigner.survey(segments, literals=literals, last=last)

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
            lambda: self._place(segments, steps, settle, answer is not None),
            # Predicting and filling take time, too: calls that are ready come first.
            idle=self._priority > READY,
        )
        await self.engine.finish(work)
        return placement.report()

    def _place(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        settle: bool,
        answers: bool,
    ) -> tuple[Placement, Work]:
        """Fill the row and queue what has to be computed; runs on the engine's thread."""
        if self._gave_way:
            raise self._preempted()
        row = self._row
        adopts = self._call.reads_prefix and row.exact
        placement = Placement(row, len(row), answers)
        for segment, step in zip(segments, steps, strict=True):
            start = len(row) - segment.done
            piece = Piece(start, len(segment), step.reason, segment.done)
            if step.way == "realign":
                piece.positions, piece.reason = self._realigner.fill(row, segment, step)
                piece.corrected = step.corrected
            if piece.positions is None:
                row.ids += segment.rest
            placement.pieces.append(piece)
        if answers or self._decoding is None:
            self._prompt = len(row)

        def begin() -> Sequence[int]:
            if adopts:
                began = done_at(row.slab.keys.device)
                placement.adopt(self.engine.prefix, self._call.namespace)
                self.phases.add("fill", done_at(row.slab.keys.device) - began)
            return placement.slots()

        def done(logits: torch.Tensor | None) -> None:
            if settle:
                self._settle()
            if answers and self._decoding is not None:
                assert logits is not None
                self._decoding.logits = logits[-1]
                self.engine.loop.decode(self._decoding)

        work = Work(
            row,
            begin,
            lambda: self._priority,
            int(answers),
            self.phases,
            done,
            takes=self._beginning(placement.adoptable) if adopts else None,
            gives=self._beginning(row.exact_length) if self._call.feeds_prefix else None,
            took=placement.take,
        )
        self._work = work
        self.engine.loop.compute(work)
        return placement, work

    def _beginning(self, length: int) -> Beginning:
        return Beginning(self._call.namespace, self._row.ids[:length])

    def _prepare(self, answer: Answer) -> Decoding:
        return Decoding(
            self._row,
            Sampler(answer.sampling, answer.seed),
            self.engine.stop | frozenset(answer.sampling.stop_token_ids),
            asyncio.get_running_loop(),
            self._tokens,
            self.phases,
            lambda: self._priority,
            record=[] if answer.record else None,
        )

    async def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots by moving into a larger slab."""
        if capacity <= self._row.slab.capacity:
            return
        self.engine.check(replace(self._call, capacity=capacity))

        def move() -> None:
            slab = self.engine.new_slab(capacity)
            slab.copy_from(self._row.slab, 0, len(self._row))
            self.engine.prefix.leave(self._row.slab, keep=False)
            self._row.slab = slab
            self._offer()
            if self.ticket:
                self.ticket.nbytes = max(self.ticket.nbytes, slab.nbytes)

        await self.engine.call(move)

    async def settle(self) -> None:
        """Everything in the row is final: offer it to the prefix cache."""
        await self.engine.call(self._settle)

    def _settle(self) -> None:
        self._row.settled = len(self._row)
        self._offer()

    def _offer(self) -> None:
        row = self._row
        held = min(row.settled, row.exact_length)
        if self._feeds_prefix and held:
            self.engine.prefix.insert(
                row.slab,
                row.ids[:held],
                exact=True,
                namespace=self._call.namespace,
                opening=len(self._call.template.literals[0]),
                held=True,
                goes_on=self._call.goes_on,
            )

    async def truncate(self, length: int) -> None:
        """Forget the slots from `length` on."""
        await self.engine.call(lambda: self._row.truncate(length))

    async def decode(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they are sampled."""
        while True:
            item = await self._tokens.get()
            if isinstance(item, NotANumber):
                # Whatever was damaged, rows that grew from it are not to be trusted.
                await self.engine.call(self._distrust)
            if isinstance(item, BaseException):
                raise item
            if item.last:
                self.engine.steps += 1
                yield item
                return
            yield item

    async def stop(self) -> None:
        """End the answer here: no further token is sampled."""
        assert self._decoding is not None
        self._decoding.cancelled = True
        await self.engine.call(lambda: None)  # the step that may be under way is over
        self.engine.steps += 1

    def _distrust(self) -> None:
        self.engine.prefix.clear(self._call.namespace)

    async def publish(self, message: Outgoing, uses: Sequence[int]) -> Handle | None:
        """A handle on the decoded KV of a message, pinned for the steps at which it is read."""
        spans = []
        slots: list[int] = []
        for span in message.spans:
            # The last sampled token was never computed: it has no slot.
            held = min(span.length, len(self._row) - self._prompt - span.source)
            if held > 0:
                spans.append((span.start, span.start + held))
                begin = self._prompt + span.source
                slots += range(begin, begin + held)
        if not slots:
            return None
        row = self._row
        lineage = () if row.exact else (secrets.token_hex(8),)
        key = content_key(
            self.engine.fingerprint, self._call.namespace, "message", row.ids, slots, lineage
        )
        if not self._offer_kv(key, slots, uses):
            return None
        return Handle(key, len(message.ids), tuple(spans), row.exact)

    async def lend(self, start: int, tokens: int, uses: Sequence[int]) -> Handle | None:
        """A handle on the KV of a text in this prompt, pinned for the steps at which it is read."""
        row, slots = self._row, range(start, start + tokens)
        if not slots or slots.stop > row.exact_length:
            return None
        before = row.ids[: slots.stop]
        key = content_key(self.engine.fingerprint, self._call.namespace, "read", before, start)
        if not self._offer_kv(key, slots, uses):
            return None
        return Handle(key, tokens, ((0, tokens),), exact=True)

    def _offer_kv(self, key: str, slots: Sequence[int], uses: Sequence[int]) -> bool:
        """Have the store know how to make the KV at these slots; False when it has no room."""
        row, nbytes = self._row, self.engine.slot_bytes * len(slots)
        kept = self.engine.store.put_recipe(key, lambda: row.position_free(slots), nbytes, uses)
        if kept:
            self._lent.append(key)
        return kept

    async def observe(self, learn: Sequence[int], offsets: str | None = None) -> None:
        """Learn offsets from this computed row, for the surveyed segments at these indices."""
        for index in learn:
            await self.engine.call(
                partial(self._realigner.observe, self._row, index, offsets), idle=True
            )

    async def with_first_layers(
        self, segments: Sequence[Segment], layers: int
    ) -> list[tuple[Segment, tuple[float, ...]]]:
        """What computing the first `layers` of this prompt brings and shows, from this exact row.

        The segments are those of the whole prompt, as any row has surveyed them. They come back
        with base KV that is true in these layers, and with the squared distance between true and
        base KV in the last of them, one for each position that the handle covers. A segment without
        base KV comes back as it is, with no numbers.
        """
        return await self.engine.call(
            partial(self._realigner.with_first_layers, self._row, segments, layers), idle=True
        )

    async def compare(self, dense: EngineSequence) -> Divergence:
        """How far this row's prompt is from `dense`, which answered greedily and recorded."""
        assert isinstance(dense, LocalSequence)
        assert dense._decoding is not None
        assert dense._decoding.record is not None
        wanted = torch.stack(dense._decoding.record)
        # The tokens that dense fed back, and the final one, which was only sampled.
        fed = dense._row.ids[dense._prompt :][: len(wanted) - 1]
        found: list[torch.Tensor] = []

        await self.reserve(self._prompt + len(fed))
        start = self._prompt - 1  # the prompt's last token once more, for its logits
        asked = range(start, self._prompt + len(fed))
        ids = [self._row.ids[start], *fed]

        def done(logits: torch.Tensor | None) -> None:
            assert logits is not None
            found.append(logits)

        work = Work(self._row, lambda: asked, lambda: self._priority, len(asked), self.phases, done)
        tail = await self.engine.call(
            lambda: self._set_aside(start, ids), idle=self._priority > READY
        )
        try:
            await self.engine.finish(self.engine.loop.compute(work))
        finally:
            await self.engine.call(lambda: self._put_back(tail))
        return await self.engine.call(lambda: divergence(wanted, found[0]))

    def _set_aside(self, start: int, ids: Sequence[int]) -> Tail:
        """Have `ids` stand from slot `start` on. Nobody else reads the row until `_put_back`."""
        self._hand_out()
        self.engine.prefix.leave(self._row.slab, keep=False)
        return self._row.set_aside(start, ids)

    def _put_back(self, tail: Tail) -> None:
        self._row.put_back(tail)
        self._offer()

    def _hand_out(self) -> None:
        """Copy the KV that others still want from this row."""
        for key in self._lent:
            if key in self.engine.store:
                self.engine.store.get(key)

    async def close(self) -> None:
        """Give the row back, also when this is cancelled. KV that is still wanted is copied."""
        try:
            if any(key in self.engine.store for key in self._lent):
                await self.engine.call(self._hand_out)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._decoding is not None:
            self._decoding.cancelled = True
            self.engine.loop.wake()
        slab = self._row.slab
        if self._feeds_prefix:
            with suppress(KvcommError):  # the engine is closed, and its cache with it
                self.engine.loop.submit(lambda: self.engine.prefix.leave(slab))
        if self.ticket:
            self.engine.room.leave(self.ticket)
        # These know this sequence. Left to the garbage collector, which sees a few small objects,
        # rows would stay for long.
        self.ticket = self._work = self._decoding = None
