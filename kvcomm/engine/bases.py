"""Base KV of texts alone and of a template's literals: made once, while there is room for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcomm.background import Once
from kvcomm.engine.base import READY, Phases
from kvcomm.engine.loop import Work
from kvcomm.engine.rows import Row
from kvcomm.errors import OutOfMemory
from kvcomm.kv import content_key
from kvcomm.prompt import Hole, Template, compile_template

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine

NO_ROOM = "no room for its base KV"


@dataclass(frozen=True)
class Base:
    """The keys of base KV, the tokens computed to make it, and why it is not there, if so."""

    keys: tuple[str, ...]
    tokens: int
    absent: str = ""


@dataclass(frozen=True)
class _Wanted:
    """KV of `spans` of `ids`, one for each key. `before` is done with the row before it is kept."""

    keys: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[range, ...]
    namespace: str
    before: Callable[[Row], None] = lambda row: None


class Bases:
    """Prefills what has no base KV yet, in rows of their own under the engine's budget.

    Who asks has a row open, so it never waits for room here: without room its text is computed.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        # What stands before a bare user text: it takes the attention sink of a base prefill. That
        # of any day: base KV is found again on the next one.
        self.header = compile_template(engine.codec.undated, (), (Hole("text"),)).literals[0]
        self._making = Once()

    async def of_text(self, ids: tuple[int, ...], namespace: str) -> Base:
        """Base KV of a text alone."""
        key = content_key(self._engine.fingerprint, namespace, "text", self.header, ids)
        whole = (*self.header, *ids)
        span = range(len(self.header), len(whole))
        if not ids:
            return Base((key,), 0)
        return await self._made(_Wanted((key,), whole, (span,), namespace))

    async def of_template(self, template: Template, namespace: str) -> Base:
        """Base KV of a template's literals, prefilled together with empty holes."""
        engine = self._engine
        stem = content_key(engine.fingerprint, namespace, "template", template.literals)
        keys = tuple(f"{stem}.{index}" for index in range(len(template.literals)))
        spans, start = [], 0
        for literal in template.literals:
            spans.append(range(start, start + len(literal)))
            start += len(literal)
        first = template.literals[0]

        def opening(row: Row) -> None:
            engine.prefix.insert(
                row.slab, first, exact=True, namespace=namespace, opening=len(first)
            )

        ids = tuple(i for literal in template.literals for i in literal)
        return await self._made(_Wanted(keys, ids, tuple(spans), namespace, opening))

    async def _made(self, wanted: _Wanted) -> Base:
        """Have KV in the store, made once for all who ask."""
        last = wanted.keys[-1]
        while not await self._engine.call(lambda: last in self._engine.store):
            async with self._making.turn(last) as mine:
                if mine:
                    return await self._make(wanted)
        return Base(wanted.keys, 0)

    async def _make(self, wanted: _Wanted) -> Base:
        keys, ids, spans = wanted.keys, wanted.ids, wanted.spans
        engine = self._engine
        ticket = engine.room.try_enter(engine.slot_bytes * len(ids), READY, lambda: None)
        if ticket is None:
            return Base(keys, 0, NO_ROOM)
        kept: list[bool] = []
        found: list[int] = []
        try:
            if engine.budget.short:
                await engine.call(engine.trim)
            if engine.slot_bytes * sum(map(len, spans)) > engine.budget.for_store():
                return Base(keys, 0, NO_ROOM)
            row = engine.new_row(len(ids))
            row.ids += ids

            def begin() -> range:
                """What no prefix holds: of a conversation, earlier turns are known."""
                match = engine.prefix.match(ids[:-1], wanted.namespace)
                held = match[1] if match else 0
                if match:
                    row.slab.copy_from(match[0], 0, held)
                found.append(held)
                return range(held, len(ids))

            def keep(_: object) -> None:
                wanted.before(row)
                for key, span in zip(keys, spans, strict=True):
                    kept.append(engine.store.put(key, row.position_free(span)))

            work = Work(
                row,
                begin=begin,
                priority=lambda: READY,
                logits=0,
                phases=Phases(),
                done=keep,
            )
            await engine.finish(engine.loop.compute(work))
        except OutOfMemory:
            return Base(keys, 0, NO_ROOM)
        finally:
            engine.room.leave(ticket)
        return Base(keys, len(ids) - found[-1], "" if all(kept) else NO_ROOM)
