"""A row on a replica: the proxy that the runtime drives."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcomm.engine.base import (
    Answer,
    Call,
    Divergence,
    EngineSequence,
    Extended,
    Phases,
    Survey,
    Token,
)
from kvcomm.engine.replicas.actor import State
from kvcomm.engine.replicas.replica import Replica
from kvcomm.errors import Preempted, ReplicaLost
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Step

if TYPE_CHECKING:
    from kvcomm.engine.replicas.engine import RayEngine


@dataclass(frozen=True)
class Arrival:
    """A handle as a replica knows it, or none; and what a trace says of that."""

    handle: Handle | None
    note: str = ""


class ReplicaSequence:
    """Operations are calls of the actor; see `kvcomm.engine.base.EngineSequence`.

    A row to `open` or to `spare` is opened by its first operation: those are synchronous, the actor
    is not. One to spare then raises `Preempted` where there is no room.
    """

    arrived = None

    def __init__(self, engine: RayEngine, home: Replica, call: Call, how: str) -> None:
        self.home = home
        self.name = secrets.token_hex(8)
        self.phases = Phases()
        self.length = 0
        self.exact = True
        self._engine = engine
        self._call = call
        self._how = how
        self._priority = call.priority
        self._life = home.lives
        self._asked = self._closed = False
        self._came: dict[str, str] = {}  # notes on KV that came from elsewhere
        self._opened = asyncio.Event()
        home.rows += 1

    async def enter(self) -> None:
        """Open the row on its replica, unless it is open."""
        if self._opened.is_set():
            return
        self._asked = True
        call = replace(self._call, priority=self._priority)
        there, _ = await self.home.call("open", self.name, self._how, call, self._engine.steps)
        if not there:
            self.home.full = True
            raise Preempted(f"replica {self.home.index} has no room for `{call.node}`")
        self._opened.set()

    async def _act(self, operation: str, *args: Any, **named: Any) -> Any:
        await self.enter()
        value, state = await self.home.call(
            "act", self.name, self._priority, operation, args, named
        )
        self._mirror(state)
        return value

    def _mirror(self, state: State) -> None:
        self.length, self.exact = state.length, state.exact
        self.phases.seconds = state.seconds

    async def survey(
        self,
        segments: Sequence[Segment],
        *,
        literals: bool = True,
        last: bool = True,
    ) -> Survey:
        """Find base KV for every segment, and ask the offset models about them."""
        await self.enter()
        came = await asyncio.gather(*map(self._fetch, segments))
        known = [
            replace(s, handle=arrival.handle) for s, arrival in zip(segments, came, strict=True)
        ]
        found: Survey = await self._act("survey", known, literals=literals, last=last)
        facts = tuple(
            replace(fact, absent=arrival.note) if arrival.note and not arrival.handle else fact
            for fact, arrival in zip(found.facts, came, strict=True)
        )
        return replace(found, facts=facts)

    async def _fetch(self, segment: Segment) -> Arrival:
        """A segment's handle as the replica knows it, its KV moved there where that pays."""
        handle = segment.handle
        if handle is None or "@" not in handle.key:
            return Arrival(handle)
        arrival = await self._engine.moves.fetch(handle, self.home)
        if arrival.handle:
            self._came[arrival.handle.key] = arrival.note
        return arrival

    async def extend(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        *,
        settle: bool = True,
        answer: Answer | None = None,
    ) -> list[Extended]:
        """Append segments: fill what is reused, then compute the rest in one go."""
        before = self.phases.seconds.get("forward", 0.0)
        done: list[Extended] = await self._act(
            "extend", list(segments), list(steps), settle=settle, answer=answer
        )
        spent = self.phases.seconds.get("forward", 0.0) - before
        self._engine.moves.computed(self.home, sum(piece.computed for piece in done), spent)
        return [self._told(piece, s) for piece, s in zip(done, segments, strict=True)]

    def _told(self, piece: Extended, segment: Segment) -> Extended:
        """What became of a segment, and where its KV came from if it came from elsewhere."""
        note = self._came.get(segment.handle.key) if segment.handle else None
        return replace(piece, reason=f"{piece.reason}; {note}") if note else piece

    async def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots."""
        if capacity > self._call.capacity:
            self._engine.check(replace(self._call, capacity=capacity))
            await self._act("reserve", capacity)

    async def settle(self) -> None:
        """Everything in the row is final; on a replica that is gone there is nothing to settle."""
        with suppress(ReplicaLost):
            await self._act("settle")

    async def truncate(self, length: int) -> None:
        """Forget the slots from `length` on."""
        await self._act("truncate", length)

    async def decode(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they arrive: `at` is the driver's clock, not the replica's."""
        while True:
            tokens, state = await self.home.call("tokens", self.name)
            self._mirror(state)
            now = time.perf_counter()
            for token in tokens:
                if token.last:
                    self._engine.steps += 1
                yield replace(token, at=now)
                if token.last:
                    return

    async def stop(self) -> None:
        """End the answer here: no further token is sampled."""
        await self._act("stop")
        self._engine.steps += 1

    async def publish(self, message: Outgoing, uses: Sequence[int]) -> Handle | None:
        """A handle whose key names the replica; None when that is gone."""
        try:
            handle: Handle | None = await self._act("publish", message, uses)
        except ReplicaLost:
            return None
        return self._known(handle, uses)

    async def lend(self, start: int, tokens: int, uses: Sequence[int]) -> Handle | None:
        """A handle whose key names the replica."""
        return self._known(await self._act("lend", start, tokens, uses), uses)

    def _known(self, handle: Handle | None, uses: Sequence[int]) -> Handle | None:
        return self._engine.moves.publish(handle, self.home, self._life, uses) if handle else None

    async def observe(self, learn: Sequence[int], offsets: str | None = None) -> None:
        """Learn offsets from this computed row; what a replica would have learned goes with it."""
        with suppress(ReplicaLost):
            await self._act("observe", list(learn), offsets)
            self._engine.sharing.observed()

    async def compare(self, dense: EngineSequence) -> Divergence:
        """How far this row's prompt is from `dense`, on the same replica."""
        assert isinstance(dense, ReplicaSequence)
        await self.enter()
        found, state = await self.home.call("compare", self.name, dense.name)
        self._mirror(state)
        return found  # type: ignore[no-any-return]

    def hurry(self, priority: int) -> None:
        """Change the sequence's priority."""
        self._priority = priority
        if self._opened.is_set() and self.home.up:
            self.home.send("hurry", self.name, priority)

    async def lost(self) -> None:
        """Wait until the row has lost its room, or its replica. Only spare rows can."""
        if self._how != "spare":
            await asyncio.Event().wait()
        await self._opened.wait()
        await self.home.call("act", self.name, self._priority, "lost", (), {})

    async def close(self) -> None:
        """Give the row back."""
        if self._closed:
            return
        self._closed = True
        if self._life == self.home.lives and self.home.up:
            self.home.rows -= 1
            self.home.full = False
        if self._asked:
            with suppress(ReplicaLost):
                await self.home.call("close", self.name)
