"""One served row: a prompt that grows here, and in the server's prefix cache ahead of its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from kvcomm.engine.base import Answer, CallSpec, Extended, Token
from kvcomm.engine.collected import CollectedSequence
from kvcomm.engine.served.abilities import Abilities
from kvcomm.engine.served.books import Books
from kvcomm.engine.usage import Arrival
from kvcomm.errors import KvcommError, ServerError
from kvcomm.prompt import Segment, common_prefix
from kvcomm.reuse.policy import Policy

# Servers keep whole blocks of at least so many tokens; fewer new ones are not worth a request.
BLOCK, GROWTH = 16, 64
# Until others may have left room for it.
PAUSE_S = 0.02


class Server(Protocol):
    """What a sequence needs of its engine: see `kvcomm.engine.served.engine.ServedEngine`."""

    model: str
    abilities: Abilities

    def check(self, call: CallSpec) -> None: ...

    def salt(self, call: CallSpec) -> str: ...

    def prefill(self, ids: Sequence[int], salt: str) -> Future[tuple[float, int | None] | None]: ...

    def answer(
        self, ids: Sequence[int], salt: str, asked: Answer, emit: Callable[[Token], None]
    ) -> Future[int | None]: ...


class ServedSequence(CollectedSequence):
    """See `kvcomm.engine.base.EngineSequence` for the contract.

    While inputs are still coming in, the prompt so far is sent for one token that nobody reads: at
    most one such request at a time, always with the latest state. The server's prefix cache then
    holds the prompt when it is complete.
    """

    _engine: Server

    def __init__(self, engine: Server, call: CallSpec) -> None:
        super().__init__(engine, call)
        self._salt = engine.salt(call)
        self._books = Books()
        self._ahead: asyncio.Task[None] | None = None
        self._answering: Future[int | None] | None = None
        self._tokens: asyncio.Queue[Token | None] = asyncio.Queue()
        self._prompt: tuple[int, ...] = ()
        self._asked = 0.0
        self._done = False

    @property
    def arrivals(self) -> tuple[Sequence[Arrival], int] | None:
        """How the prompt came together, once it is answered."""
        return self._books.arrivals() if self._done else None

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
    ) -> Extended:
        """Append the segments' ids; the server gets them at once if they are worth it."""
        done = await super().extend(segments, policy, last=last)
        reads = self._call.reuse.reads_prefix
        if last is not None:
            self._ask(last)
        elif reads and (self._ahead is None or self._ahead.done()):
            self._ahead = asyncio.create_task(self._work_ahead())
        if not reads:
            return done
        lacks = self._engine.abilities.lacks
        reason = "computed by the server" + (f"; {lacks}" if lacks else "")
        return done._replace(segments=[replace(piece, reason=reason) for piece in done.segments])

    async def _work_ahead(self) -> None:
        while self._answering is None:
            known = self.length // BLOCK * BLOCK
            if known - self._books.sent < GROWTH:
                return
            began, ids = time.perf_counter(), tuple(self._ids[:known])
            try:
                found = await asyncio.wrap_future(self._engine.prefill(ids, self._salt))
            except KvcommError:
                return  # nothing depends on it, and the next piece is a new attempt
            if found is None:
                await asyncio.sleep(PAUSE_S)
            elif not self._done:
                self.phases.add("forward", time.perf_counter() - began)
                at, cached = found
                # Meanwhile the end may have been taken back.
                self._books.add(at, common_prefix(ids, self._ids), cached)

    def _ask(self, answer: Answer) -> None:
        self._prompt, self._asked = tuple(self._ids), time.perf_counter()
        running, tokens = asyncio.get_running_loop(), self._tokens

        def emit(token: Token | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                running.call_soon_threadsafe(tokens.put_nowait, token)

        self._answering = self._engine.answer(self._prompt, self._salt, answer, emit)
        self._answering.add_done_callback(lambda _: emit(None))

    async def truncate(self, length: int) -> None:
        """Forget ids from `length` on."""
        await super().truncate(length)
        self._books.truncate(length)

    async def answer(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they come."""
        assert self._answering is not None
        first = last = 0.0
        while (token := await self._tokens.get()) is not None:
            first, last = first or token.at, token.at
            yield token
        # Behind the last token the server says what its prefix cache held.
        cached = await self._prefix(self._answering)
        self.phases.add("first token", first - self._asked)
        self.phases.add("decode", last - first)
        self._books.add(first, len(self._prompt), cached)
        self._done = True

    async def stop(self, kept: int) -> None:
        """End the answer here, and its request: what the server's cache held stays unknown."""
        assert self._answering is not None
        self._answering.cancel()
        self._books.add(time.perf_counter(), len(self._prompt), None)
        self._done = True

    async def _prefix(self, answering: Future[int | None]) -> int | None:
        try:
            return await asyncio.wrap_future(answering)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServerError("the engine was closed in the middle of an answer") from None

    async def close(self) -> None:
        """End the row's requests."""
        if self._answering is not None:
            self._answering.cancel()
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
