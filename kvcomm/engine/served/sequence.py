"""A prompt on a server: sent ahead while it grows, then answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from kvcomm.engine.base import Answer, CallSpec, Extended, Token
from kvcomm.engine.collected import CollectedSequence
from kvcomm.engine.served.protocol import Reading, ServedUsage, cached
from kvcomm.errors import KvcommError, ServerError
from kvcomm.prompt import Segment, common_prefix
from kvcomm.reuse.policy import Policy

# Servers keep whole blocks of at least so many tokens; fewer new ones are not worth a request.
BLOCK, GROWTH = 16, 64
# Until others may have left room for a request ahead.
PAUSE_S = 0.02


class ServedSequence(CollectedSequence):
    """See `kvcomm.engine.base.EngineSequence` for the contract.

    While inputs are still coming in, the prompt so far is sent for one token that nobody reads: at
    most one such request at a time, always with the latest state. The server's prefix cache then
    holds the prompt when it is complete.
    """

    _engine: Any  # a `ServedEngine`

    def __init__(self, engine: Any, call: CallSpec) -> None:
        super().__init__(engine, call)
        self._salt = engine.salt(call)
        self._usage = ServedUsage()
        self._ahead: asyncio.Task[None] | None = None
        self._answering: Future[int | None] | None = None
        self._tokens: asyncio.Queue[Token | None] = asyncio.Queue()
        self._prompt: tuple[int, ...] = ()
        self._asked = 0.0
        self._params: dict[str, Any] = {}  # more fields of the request that is answered
        self._answered_tokens = 0

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
    ) -> Extended:
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
            if known - self._usage.sent < GROWTH:
                return
            began, ids = time.perf_counter(), tuple(self._ids[:known])
            try:
                found = await asyncio.wrap_future(
                    self._engine.background.start(self._prefilled(ids))
                )
            except KvcommError:
                return  # nothing depends on it, and the next piece is a new attempt
            if found is None:
                await asyncio.sleep(PAUSE_S)
            elif self.arrivals is None:
                self.phases.add("forward", time.perf_counter() - began)
                at, held = found
                # Meanwhile the end may have been taken back.
                self._usage.add(at, common_prefix(ids, self._ids), held)

    async def _prefilled(self, ids: Sequence[int]) -> tuple[float, int | None] | None:
        """The clock when the server had computed a prompt ahead, and what its cache held of it.

        None while other requests need the server. Runs on the engine's loop.
        """
        async with self._engine.gate.spare() as free:
            if not free:
                return None
            body = self._engine.body(ids, self._salt, max_tokens=1, temperature=0.0)
            answer = await self._engine.client.ask("completions", body)
            return time.perf_counter(), cached(answer)

    def _ask(self, answer: Answer) -> None:
        self._prompt, self._asked = tuple(self._ids), time.perf_counter()
        running, tokens = asyncio.get_running_loop(), self._tokens

        def emit(token: Token | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                running.call_soon_threadsafe(tokens.put_nowait, token)

        self._answering = self._engine.background.start(self._answered(answer, emit))
        self._answering.add_done_callback(lambda _: emit(None))

    async def _answered(self, asked: Answer, emit: Callable[[Token], None]) -> int | None:
        """Stream the answer to `emit`; returns what the server's cache held of the prompt.

        Runs on the engine's loop. Raises what `Client.stream` raises.
        """
        engine, sampling = self._engine, asked.sampling
        body = engine.body(
            self._prompt,
            self._salt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=asked.seed,
            stream=True,
            stream_options={"include_usage": True},
            **self._params,
        )
        if sampling.stop:
            body["stop"], body["include_stop_str_in_output"] = list(sampling.stop), True
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        stop = engine.stop | frozenset(sampling.stop_token_ids)
        reading = Reading(engine.codec, sampling.max_tokens, stop, engine.abilities.token_ids)
        async with engine.gate.ready() as begun, aclosing(engine.client.stream(body)) as pieces:
            async for piece in pieces:
                begun()
                for token in reading.feed(piece, time.perf_counter()):
                    emit(token)
                if reading.ended and not reading.finished:
                    break  # a stop token that the server does not know
        if not reading.ended:
            raise ServerError(f"the server at {engine.device} ended an answer in the middle")
        return reading.cached

    async def truncate(self, length: int) -> None:
        await super().truncate(length)
        self._usage.truncate(length)

    async def answer(self) -> AsyncGenerator[Token, None]:
        assert self._answering is not None
        first = last = 0.0
        while (token := await self._tokens.get()) is not None:
            first, last = first or token.at, token.at
            self._answered_tokens += 1
            yield token
        # Behind the last token the server says what its prefix cache held.
        try:
            cached = await asyncio.wrap_future(self._answering)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServerError("the engine was closed in the middle of an answer") from None
        self.phases.add("first token", first - self._asked)
        self.phases.add("decode", last - first)
        self._end(first, cached)

    async def stop(self, kept: int) -> None:
        """End the answer here, and its request: what the server's cache held stays unknown."""
        assert self._answering is not None
        self._answering.cancel()
        self._end(time.perf_counter(), None)

    def _end(self, at: float, cached: int | None) -> None:
        """The prompt was computed at the clock `at`: how it came together is known."""
        self._usage.add(at, len(self._prompt), cached)
        self.arrivals = self._usage.arrivals, self._usage.again

    async def close(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
