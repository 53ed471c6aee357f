"""The scheduler's side: what there is, who asks for it, and what the workers are to do.

Pure: it knows neither vLLM nor torch, and the clock is given. One thread calls it, request by
request: `arrived`, `match` and `allocated` (again after a preemption), `completed` when a step
completes the prompt, `finished`. Between them `take` hands out a step's orders.

What is missing is not supplied: vLLM computes from there, so what goes wrong makes a prompt more
exact. The exception is an answer that was preempted: it goes on in the context that it began in, or
not at all.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvcomm.vllm.facts import Facts, Known, Told, together
from kvcomm.vllm.names import Name, Names
from kvcomm.vllm.orders import Ask, Copy, Fill, Load, Orders, Save, Teach
from kvcomm.vllm.protocol import SALT, Lesson, Piece, Publish, Reply, Request, salt_of
from kvcomm.vllm.rows import Row, Rows

# How long a model's change is told in every reply: there may be several clients.
TOLD_S = 120.0
# The most lessons that are ordered and not over.
LESSONS = 16


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
        self.known = Known(ranks)
        self.off = ""
        self.said: dict[str, Any] = {}  # what else the connector is, for those who ask
        self.learned = 0
        self._ranks = ranks
        self._block = block
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._orders = Orders()
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[int, Told | None]] = {}
        self._lessons: dict[int, set[int]] = {}  # the ranks that have still to learn each

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
            live.questions = [self._ask(live, question) for question in asked.questions]

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

    def _ask(self, live: Live, question: Any) -> int | None:
        name = self._find(live, question.name)
        stop = question.origin + question.tokens
        if name is None or stop > len(name.tokens):
            return None
        number = next(self._numbers)
        self._answers[number] = {}
        self._orders.asks.append(
            Ask(number, question.model, name.entry, question.origin, question.tokens)
        )
        return number

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
        if piece.model is not None:
            told = self.known[piece.model]
            if told is None or not told.samples:
                return None
            of = behind if piece.behind else name
            if of is None or (told.reach is not None and len(of.tokens) > told.reach):
                return None
            if piece.behind and len(name.tokens) not in told.literals:
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
            lessons = [t for lesson in live.asked.lessons if (t := self._teach(live, lesson))]
        if live.row is not None and live.asked.keep:
            kept = self.rows.keep(live.row, live.tokens, blocks, free)
            if kept is None:
                live.row, live.refused = None, "there is no room for its row"
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

    def _teach(self, live: Live, lesson: Lesson) -> Teach | None:
        """The lesson as an order; None for one that cannot be, or where too many wait already."""
        base = self._find(live, lesson.name)
        ends = len(live.tokens)
        if base is None or len(self._lessons) >= LESSONS or lesson.stop > ends:
            return None
        if not base.holds(live.tokens[lesson.start : lesson.stop], lesson.origin):
            return None
        literal = self.names.get(lesson.literal) if lesson.literal else None
        if literal is not None:
            behind = live.tokens[lesson.stop : lesson.stop + len(literal.tokens)]
            literal = literal if literal.holds(behind, 0) and len(behind) else None
        number = next(self._numbers)
        self._lessons[number] = set(range(self._ranks))
        return Teach(
            number,
            lesson.model,
            base.entry,
            lesson.start,
            lesson.stop,
            lesson.origin,
            literal.entry if literal else None,
            len(literal.tokens) if literal else 0,
        )

    def finished(
        self, key: str, tokens: Sequence[int], held: int, blocks: Sequence[int], ended: str = ""
    ) -> Reply | None:
        """A request is over: its first `held` of `tokens` are in `blocks`; `ended` says how badly.

        Returns what it is answered, None for one that asked for nothing.
        """
        live = self._live.pop(key, None)
        if live is None:
            return None
        if live.completed and not ended and not live.refused:
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
            answers=tuple(self._answer(number) for number in live.questions),
            models=self.known.since(None if live.asked.query else self._clock() - TOLD_S),
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

    def _answer(self, number: int | None) -> tuple[bool, str, int, float] | None:
        found = self._answers.pop(number, {}) if number is not None else {}
        said = [told for told in found.values() if told is not None]
        if len(said) < self._ranks:
            return None
        return together(said).brief

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
        self.known.heard(facts.models, self._clock())
        for rank, answers in facts.answers.items():
            for number, told in answers.items():
                if number in self._answers:
                    self._answers[number][rank] = told
        for rank, numbers in facts.lessons.items():
            for number in numbers:
                waiting = self._lessons.get(number, set())
                waiting.discard(rank)
                if not waiting and self._lessons.pop(number, None) is not None:
                    self.learned += 1
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
            "lessons_waiting": len(self._lessons),
            "lessons_learned": self.learned,
            "models": len(self.known),
            "disabled": self.off,
        }


def _cut(fill: Fill, stop: int) -> Fill:
    """A fill, as far as `stop`."""
    if fill.stop <= stop:
        return fill
    return Fill(fill.start, stop, fill.entry, fill.origin, fill.model, fill.scale, fill.behind)
