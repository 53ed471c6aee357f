"""A sequence on the engine's thread: token ids, KV, and what is known of its prompt. Data only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from kvcomm.engine.base import READY, CallSpec, Extended, Phases, Token
from kvcomm.engine.clock import done_at
from kvcomm.engine.local.sampler import Sampler
from kvcomm.engine.local.watch import Watch
from kvcomm.engine.realign import Base
from kvcomm.engine.segments import Entry
from kvcomm.engine.usage import Arrival, SegmentUsage
from kvcomm.kv import KV, KVBuffer, Rope
from kvcomm.prompt import Segment
from kvcomm.reuse.attended import best, by_attention
from kvcomm.reuse.offsets import OffsetModel
from kvcomm.reuse.plan import BaseKind, Source


@dataclass
class Answering:
    """How a sequence answers. `logits` are those behind its last token with KV.

    `token` was sampled and has no KV yet. Tokens and errors go to `tokens`, on the event loop
    `running`. `record`, where there is one, gets the logits behind the first `SAME_TEXT` tokens.
    """

    sampler: Sampler
    stop: frozenset[int]
    running: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[Token | BaseException]
    began: float = 0.0
    sampled: int = 0
    token: int | None = None
    record: list[torch.Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """A segment in the sequence, from slot `start` on, and the key of its base KV, if any."""

    segment: Segment
    start: int
    key: str | None
    covered: Sequence[int]


class FoundBase(NamedTuple):
    """Base KV of a segment: its key, its kind, and why there is none.

    `node` has read it, or it is the mean of several `prompts`.
    """

    base: Base | None = None
    key: str | None = None
    kind: BaseKind | None = None
    node: str = ""
    prompts: int = 1
    absent: str = ""


@dataclass(eq=False)
class Moment:
    """What a prompt was realigned with: offset models by label, and base KV of inputs by segment.

    Both change behind it, and are replaced, not written: so they stay as they were.
    """

    models: dict[str, OffsetModel] = field(default_factory=dict)
    bases: dict[int, FoundBase] = field(default_factory=dict)


@dataclass(eq=False)
class SequenceState:
    """Token ids and KV of one sequence; slot = position.

    `ids` are those of all slots, filled or queued; the first `settled` of them are final. From
    `realigned_from` on everything is approximate. `buffer` is there from the first `extend` until
    it ends; then `ended` says why. `placed` are its segments by index.
    """

    call: CallSpec
    rope: Rope
    phases: Phases
    priority: int
    buffer: KVBuffer | None = None
    reserved: int = 0
    order: int = 0
    ids: list[int] = field(default_factory=list)
    settled: int = 0
    realigned_from: int | None = None
    prompt: int = 0
    answering: Answering | None = None
    ended: BaseException | None = None
    placed: dict[int, Placed] = field(default_factory=dict)
    views: list[Entry] = field(default_factory=list)
    moment: Moment = field(default_factory=Moment)
    learn: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kv(self) -> KVBuffer:
        """Its buffer."""
        assert self.buffer is not None
        return self.buffer

    @property
    def exact_length(self) -> int:
        """Leading slots whose KV was computed from computed KV."""
        return len(self.ids) if self.realigned_from is None else self.realigned_from

    def write(self, start: int, positions: Sequence[int], kv: KV) -> None:
        """Write position-free KV to slots `start + positions`, in this order, rotated."""
        if not positions:
            return
        if self.realigned_from is None:
            self.realigned_from = start + min(positions)
        slots = torch.as_tensor(positions, device=kv.keys.device) + start
        began = done_at(kv.keys.device)
        keys = self.rope.rotate(kv.keys, slots)
        rotated = done_at(kv.keys.device)
        self.kv.keys.index_copy_(2, slots, keys.to(self.kv.keys.dtype))
        self.kv.values.index_copy_(2, slots, kv.values.to(self.kv.values.dtype))
        self.phases.add("rotate", rotated - began)
        self.phases.add("fill", done_at(kv.keys.device) - rotated)

    def position_free(self, slots: Sequence[int]) -> KV:
        """The KV at `slots`, rotary embedding undone; a copy."""
        index = torch.as_tensor(slots, dtype=torch.long, device=self.kv.keys.device)
        keys = self.kv.keys.index_select(2, index)
        return KV(self.rope.unrotate(keys, index), self.kv.values.index_select(2, index))

    def truncate(self, length: int) -> None:
        """Forget the slots from `length` on. Raises `ValueError` for settled ones."""
        if length < self.settled:
            raise ValueError(f"slots up to {self.settled} are settled, cannot cut at {length}")
        del self.ids[length:]
        if self.realigned_from is not None and length <= self.realigned_from:
            self.realigned_from = None


@dataclass
class PromptPiece:
    """One segment of a prefill: from slot `start` on, its first `done` tokens came before.

    `positions` of a realigned one are computed (None: all of it is). Its base KV is of the kind
    `base`, from the prompt of `node`, or the mean of several `prompts`.
    """

    segment: Segment
    start: int
    reason: str
    positions: list[int] | None = None
    corrected: bool = False
    scale: float = 1.0
    base: BaseKind | None = None
    node: str = ""
    prompts: int = 1

    def slots(self, adopted: int) -> Sequence[int]:
        """The slots to compute, those below `adopted` apart."""
        if self.positions is not None:
            return [self.start + position for position in self.positions]
        begin = max(self.start + self.segment.done, adopted)
        return range(begin, self.start + len(self.segment))

    def usage(self, adopted: int, at: float) -> SegmentUsage:
        """What became of it, the slots below `adopted` having been in the prefix cache."""
        segment = self.segment
        done, rest = segment.done, len(segment.rest)
        source: Source = "realign"
        reason, positions = self.reason, ()
        prefix = realigned = 0
        if self.positions is not None:
            realigned = rest - len(self.positions)
            positions = (*range(done), *self.positions)
            if realigned and self.base == "mean":
                reason += f"; KV: mean of {self.prompts} prompts"
            elif realigned and self.node:
                reason += f"; KV from the prompt of {self.node}"
        else:
            prefix = min(max(adopted - self.start - done, 0), rest)
            source = "prefix" if 0 < prefix == rest else "compute"
            if prefix:
                part = "in part " if prefix < rest else ""
                reason = f"{part}in the prefix cache"
        computed = rest - prefix - realigned
        return SegmentUsage(
            segment.index,
            segment.kind,
            segment.name,
            segment.rest,
            computed,
            prefix,
            realigned,
            source,
            reason,
            positions,
            self.corrected,
            self.scale,
            self.base if realigned else None,
            self.node if realigned else "",
            (Arrival(at, rest, computed),),
        )


@dataclass(eq=False)
class QueryPass:
    """A first pass over what is computed of a prompt: it says what more is worth computing.

    All of `pieces` is realigned; `count` of their tokens are to be computed, those that `watch` has
    seen attended to, and the slots from `start` on once more.
    """

    watch: Watch
    pieces: list[PromptPiece]
    count: int
    start: int

    def choose(self) -> None:
        """Put the chosen tokens among the pieces' positions."""
        attention = iter(self.watch.total())
        scores = by_attention([[next(attention) for _ in p.segment.ids] for p in self.pieces])
        known = [set(piece.positions or ()) for piece in self.pieces]
        sizes = [len(piece.segment) for piece in self.pieces]
        free = [set(range(size)) - sure for size, sure in zip(sizes, known, strict=True)]
        found = best(scores, free, self.count)
        for piece, sure, more in zip(self.pieces, known, found, strict=True):
            piece.positions = sorted(sure | more)


@dataclass(eq=False)
class Prefill:
    """Positions of a sequence to compute; all other slots below them are filled.

    `pieces` are the segments that it is about. The logits of the last `logits` positions are
    wanted. Slots below `adopts` may be taken from the prefix cache instead, when its turn comes.
    `settles`: the tokens are final. `answers`: the answer begins when it is done. `claims` are the
    entries of the segment cache that it computes, and their slots. `compare` are logits of dense,
    to compare with. `future` gets what came of it. With a `query` pass, what that computes comes
    first; `query_tokens` counts what of it is computed again.
    """

    seq: SequenceState
    start: int
    pieces: list[PromptPiece] = field(default_factory=list)
    adopts: int = 0
    logits: int = 0
    settles: bool = False
    answers: bool = False
    decision: str = ""
    dense: bool = True
    base_tokens: int = 0
    claims: list[tuple[Entry, Sequence[int]]] = field(default_factory=list)
    compare: torch.Tensor | None = None
    future: Future[Any] = field(default_factory=Future)
    order: int = 0
    query: QueryPass | None = None
    query_tokens: int = 0
    urgent: bool = False  # somebody who is ready waits for a claim
    adopted: int = 0
    slots: list[int] | None = None
    computed: int = 0
    collected: list[torch.Tensor] = field(default_factory=list)

    @property
    def priority(self) -> int:
        """That of its sequence, or of whoever waits for it."""
        return READY if self.urgent else self.seq.priority

    @property
    def left(self) -> int:
        """Tokens that are still to be computed, at most."""
        return len(self.due() if self.slots is None else self.slots) - self.computed

    def due(self) -> list[int]:
        """The slots to compute, ascending. An answer needs the logits of the last one."""
        if not self.pieces:
            return list(range(max(self.start, self.adopted), len(self.seq)))
        found = [slot for piece in self.pieces for slot in piece.slots(self.adopted)]
        last = len(self.seq) - 1
        return found if found[-1:] == [last] or not self.answers else [*found, last]

    def ask(self) -> None:
        """The query pass is over: compute what it has chosen."""
        query, self.query = self.query, None
        assert query is not None
        self.query_tokens = sum(slot >= query.start for slot in self.slots or ())
        query.choose()
        self.slots = [slot for slot in self.due() if slot >= query.start]
        self.computed = 0

    def result(self, at: float) -> Extended:
        """What became of its segments."""
        usage = [piece.usage(self.adopted, at) for piece in self.pieces]
        return Extended(usage, self.decision, self.dense, self.base_tokens, self.query_tokens)
