"""The scheduler's side: what there is, who asks for it, and what the workers are to do.

Pure: it knows neither vLLM nor torch, and the clock is given. One thread calls it, request by
request: `arrived`, `match` and `allocated` (again after a preemption), `completed` when a step
completes the prompt, `finished`. Between them `take` hands out a step's orders.

What is missing is not supplied: vLLM computes from there, so what goes wrong makes a prompt more
exact. The exception is an answer that was preempted: it goes on in the context that it began in, or
not at all.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kvcomm.vllm.facts import Facts
from kvcomm.vllm.names import Name, Names
from kvcomm.vllm.orders import Copy, Fill, Load, Orders, Save, Teach
from kvcomm.vllm.protocol import SALT, Piece, Publish, Reply, Request, salt_of
from kvcomm.vllm.rows import Row, Rows
from kvcomm.vllm.teaching import Teaching

# How long a model's change is told in every reply: there may be several clients.
TOLD_S = 120.0
# How vLLM calls the end of a request that was aborted.
ABORTED = "FINISHED_ABORTED"


class Promise(NamedTuple):
    """What is supplied behind the `start` tokens that vLLM has; `fails`: nothing, the request."""

    start: int
    fills: tuple[Fill, ...] = ()
    fails: bool = False

    @property
    def stop(self) -> int:
        """How far the prompt is there then."""
        return self.fills[-1].stop if self.fills else self.start


@dataclass(eq=False)
class Live:
    """A request under way, and what was done for it."""

    tokens: array[int]
    salt: str
    asked: Request
    refused: str = ""
    row: Row | None = None
    promise: Promise = field(default_factory=lambda: Promise(0))
    supplied: tuple[int, int] | None = None
    completed: bool = False
    used: dict[str, Name] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    questions: list[int | None] = field(default_factory=list)

    @property
    def computed(self) -> bool:
        """Whether nothing of its prompt was supplied, or is of a prompt of which something was."""
        first, last = self.supplied or (0, 0)
        return first == last and self.row is None and not self.salt.startswith(SALT)


class Catalogue:
    """See the module. `block` tokens make a block, `token_bytes` of KV a token, on all ranks."""

    def __init__(
        self,
        *,
        block: int,
        token_bytes: int,
        budget: int,
        ranks: int = 1,
        row_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = Names(budget, token_bytes)
        self.rows = Rows(self.names, block, row_s, clock)
        # Copies of what lessons are about are bounded as the store is.
        self.teaching = Teaching(ranks, budget // (4 * token_bytes))
        self.off = ""
        self.said: dict[str, Any] = {}  # what else the connector is, for those who ask
        self._block = block
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._orders = Orders()

    # --- a request's life ---

    def arrived(
        self,
        key: str,
        tokens: Sequence[int],
        salt: str,
        params: Mapping[str, Any] | None,
        refused: str = "",
    ) -> None:
        """A request that vLLM calls `key`; `refused` says why nothing can be supplied to it."""
        self.rows.expire()
        try:
            asked = Request.from_json(params)
        except ValueError as error:
            asked, refused = Request(), str(error)
        if asked is None:
            return
        live = self._live[key] = Live(array("I", tokens), salt, asked, self.off or refused)
        for name in asked.release:
            self.names.release(name)
        for name in asked.ends:
            self.rows.end(name)
        if not live.refused and asked.row:
            live.refused = self._join(key, live)
        if not live.refused:
            self._look_up(live)
            for question in asked.questions:
                ask = self.teaching.ask(question, self._find(live, question.name))
                live.questions.append(ask.number if ask else None)
                self._orders.asks += [ask] if ask else []

    def _join(self, key: str, live: Live) -> str:
        """Make a request one of its row's; returns why not."""
        if live.salt != salt_of(live.asked.row):
            return "its cache_salt is not that of its row"
        row = self.rows.get(live.asked.row)
        if row.live:
            return "another request of its row is under way"
        if live.tokens[: len(row.tokens)] != row.tokens:
            return "it does not go on with its row"
        live.row, row.live = row, key
        return ""

    def _look_up(self, live: Live) -> None:
        """Hold the names that a request fills its prompt with, and note those that are gone."""
        asked = live.asked
        for piece in asked.pieces:
            for each in filter(None, (piece.name, piece.behind)):
                name = self._find(live, each)
                if name is not None and each not in live.used:
                    self.names.hold(name)
                    live.used[each] = name
            name = live.used.get(piece.name)
            ids = live.tokens[piece.start : piece.stop]
            if name is not None and not name.holds(ids, piece.origin):
                live.refused = f"[{piece.start}, {piece.stop}) are not the tokens of {piece.name}"
        for lesson in asked.lessons:
            self._find(live, lesson.name)

    def _find(self, live: Live, key: str) -> Name | None:
        name = self.names.get(key)
        if name is None:
            live.missing[key] = None
        return name

    def match(self, key: str, total: int, local: int, emitted: int = 0) -> int:
        """How many tokens are supplied behind the `local` ones that vLLM has, of `total`.

        `emitted` tokens of its answer are there already: it was preempted.
        """
        live = self._live.get(key)
        if live is None:
            return 0
        promise = Promise(local, tuple(self._fills(live, local, total - 1)))
        said = emitted or live.completed  # a token may be on its way
        if said and live.supplied and promise.stop < live.supplied[1]:
            # What it began with is gone. vLLM has a request fail when a block of it does.
            promise = Promise(local, (Fill(local, local + 1, 0),), True)
        live.promise = promise
        return promise.stop - local

    def _fills(self, live: Live, at: int, limit: int) -> list[Fill]:
        """What joins on the first `at` tokens, without a gap."""
        if live.refused or live.row is None:
            return []
        fills = live.row.fills(at, limit)
        at = fills[-1].stop if fills else at
        for piece in sorted(live.asked.pieces, key=lambda piece: piece.start):
            stop = min(piece.stop, limit)
            if stop <= at:
                continue
            fill = self._fill(live, piece, at, stop) if piece.start <= at else None
            if fill is None:
                break
            fills.append(fill)
            at = stop
        return fills

    def _fill(self, live: Live, piece: Piece, start: int, stop: int) -> Fill | None:
        """The part of a piece that fills `[start, stop)`; None where it cannot."""
        name, behind = live.used.get(piece.name), live.used.get(piece.behind)
        if name is None:
            return None
        if not self.teaching.predicts(piece, name, behind):
            return None
        origin = piece.origin + start - piece.start
        entry = behind.entry if behind and piece.model else None
        return Fill(start, stop, name.entry, origin, piece.model, piece.scale, entry)

    def allocated(self, key: str, external: int, blocks: Sequence[int]) -> None:
        """vLLM wants the first `external` tokens of what was promised, and has blocks for them."""
        live = self._live.get(key)
        if live is None:
            return
        start, fills, fails = live.promise
        stop = start + external
        kept = tuple(_cut(fill, stop) for fill in fills if fill.start < stop)
        if kept:
            self._orders.loads.append(Load(tuple(blocks), kept, fails))
        if not fails and live.row is not None:
            live.supplied = start, max(stop, start)

    def completed(self, key: str, blocks: Sequence[int], free: int) -> None:
        """The coming step completes a prompt; `free` blocks are nobody's."""
        live = self._live.get(key)
        if live is None or live.completed or live.refused:
            return
        live.completed = True
        copies: list[Copy] = []
        lessons: list[Teach] = []
        if live.computed:
            ends = len(live.tokens)
            wanted = [one for one in live.asked.publish if one.stop and one.stop <= ends]
            copies = self._publish(live, wanted, live.tokens)
            for lesson in live.asked.lessons:
                base, literal = self._find(live, lesson.name), self.names.get(lesson.literal)
                if base and (teach := self.teaching.lesson(live.tokens, lesson, base, literal)):
                    lessons.append(teach)
        if live.row is not None and live.asked.keep:
            kept = self.rows.keep(live.row, live.tokens, blocks, free)
            if kept is None:
                live.row, live.refused = None, "its row has ended, or there is no room for it"
            copies += kept or ()
        if copies or lessons:
            self._orders.after.append(Save(tuple(blocks), tuple(copies), tuple(lessons)))

    def _publish(self, live: Live, wanted: Iterable[Publish], tokens: array[int]) -> list[Copy]:
        copies = []
        for one in wanted:
            stop = len(tokens) if one.stop is None else one.stop
            name = self.names.add(one.name, tokens[one.start : stop])
            if name is not None:
                live.published.append(one.name)
                copies.append(Copy(name.entry, one.start, stop))
        return copies

    def finished(
        self, key: str, tokens: Sequence[int], held: int, blocks: Sequence[int], ended: str = ""
    ) -> Reply | None:
        """A request is over: its first `held` of `tokens` are in `blocks`; `ended` says how badly.

        One that is aborted still publishes what it has said: servers abort an answer at a stop
        text. Returns what it is answered, None for one that asked for nothing.
        """
        live = self._live.pop(key, None)
        if live is None:
            return None
        if live.completed and ended in ("", ABORTED) and not live.refused:
            self._answered(live, array("I", tokens[:held]), blocks)
        row = live.row
        if row is not None and row.live == key:
            row.live, row.seen = "", self._clock()
            if ended or not live.completed or not live.asked.keep:
                self.rows.stale += blocks
                self.rows.end(row.name)
        for name in live.used.values():
            self.names.unhold(name)
        return Reply(
            supplied=live.supplied or (0, 0),
            missing=tuple(live.missing),
            published=tuple(live.published),
            refused=live.refused or self.off,
            answers=tuple(map(self.teaching.answer, live.questions)),
            models=self.teaching.known.since(None if live.asked.query else self._clock() - TOLD_S),
            about=self.about() if live.asked.query else None,
        )

    def _answered(self, live: Live, tokens: array[int], blocks: Sequence[int]) -> None:
        """Publish what goes on into the answer, and hold its blocks until it is read."""
        prompt, given = len(live.tokens), live.asked
        wanted = [one for one in given.publish if one.stop is None or one.stop > prompt]
        if not live.computed:
            # Of a realigned prompt only what was computed in it is anybody's message.
            filled = max((piece.stop for piece in given.pieces), default=0)
            filled = max(filled, live.supplied[1] if live.supplied else prompt)
            wanted = [one for one in wanted if one.start >= filled]
        wanted = [one for one in wanted if one.start < (one.stop or len(tokens)) <= len(tokens)]
        copies = self._publish(live, wanted, tokens)
        if copies:
            self._orders.before.append(Save(tuple(blocks), tuple(copies)))
            first = min(copy.start for copy in copies) // self._block
            last = -(-max(copy.stop for copy in copies) // self._block)
            mine = list(blocks[first:last])
            self.rows.pins += mine
            self.rows.held += mine

    # --- steps ---

    def take(self) -> Orders:
        """The orders of the coming step. Blocks that it reads first are anybody's after it."""
        self.rows.expire()
        orders, self._orders = self._orders, Orders()
        orders.drops, self.names.drops = self.names.drops, []
        self.rows.unpins += self.rows.held
        self.rows.held = []
        return orders

    def give_way(self) -> None:
        """A request waits for blocks, and nothing runs: rows that are idle let go of theirs."""
        self._orders.before += self.rows.give_way()

    def heard(self, facts: Facts) -> None:
        """Take in what workers say."""
        self.teaching.heard(facts, self._clock())
        for rank, why in facts.failed.items():
            self.disable(f"rank {rank}: {why}")

    def disable(self, why: str) -> None:
        """Supply nothing from now on, and let go of all that is kept."""
        self.off = self.off or why
        for live in self._live.values():
            live.refused = live.refused or self.off
        self.clear()

    def clear(self) -> None:
        """Empty the store; rows end."""
        for live in self._live.values():
            live.row = None
        self.rows.clear()
        self.names.clear()

    def about(self) -> dict[str, Any]:
        """What there is, in numbers."""
        return {
            **self.said,
            "names": len(self.names),
            "store_bytes": self.names.used,
            "store_budget": self.names.budget,
            "rows": len(self.rows),
            "pinned_blocks": self.rows.pinned,
            "live": len(self._live),
            "lessons_waiting": len(self.teaching),
            "lessons_learned": self.teaching.learned,
            "lessons_dropped": self.teaching.dropped,
            "models": len(self.teaching.known),
            "disabled": self.off,
        }


def _cut(fill: Fill, stop: int) -> Fill:
    """A fill, as far as `stop`."""
    return fill if fill.stop <= stop else replace(fill, stop=stop)
