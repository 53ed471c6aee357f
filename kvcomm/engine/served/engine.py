"""The engine over HTTP: a model that an OpenAI-compatible server with prefix caching runs."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

from kvcomm.background import Background
from kvcomm.engine.base import Answer, CallSpec, Capabilities, Token
from kvcomm.engine.bounded import Bounded
from kvcomm.engine.collected import WithoutKV
from kvcomm.engine.served.abilities import Abilities, cached
from kvcomm.engine.served.answer import Reading
from kvcomm.engine.served.client import Client
from kvcomm.engine.served.gate import Gate
from kvcomm.engine.served.sequence import ServedSequence
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import ServerError

# Requests under way at once; a server queues what it cannot compute at once.
PARALLEL = 32


class ServedEngine(WithoutKV, Bounded):
    """Sends prompts as token ids and streams answers; made by `load_served`.

    All requests live on the event loop of `background`, so that sessions on any loop can share
    the engine. Its calls that may read prefixes share one salt a namespace; all others have a salt
    of their own, so neither profits from what the other has computed.
    """

    dtype = weights = ""

    def __init__(
        self,
        client: Client,
        background: Background,
        codec: TokenizerCodec,
        abilities: Abilities,
        *,
        model: str,
        fingerprint: str,
        max_context: int,
        stop: frozenset[int],
    ) -> None:
        self.model = model
        self.device = client.base_url
        self.fingerprint = fingerprint
        self.max_context = max_context
        self.stop = stop
        self.codec = codec
        self.abilities = abilities
        reason = "its KV stays on the server, which reuses equal prefixes"
        lacks = f"; {abilities.lacks}" if abilities.lacks else ""
        self.capabilities = Capabilities(reuse=False, exact=True, reason=reason + lacks)
        self._client = client
        self._background = background
        self._gate = Gate(PARALLEL)
        self._secret = secrets.token_hex(8)

    def open(self, call: CallSpec) -> ServedSequence:
        """A new sequence. Raises `ContextOverflow` when it cannot fit the model's context."""
        self.check(call)
        return ServedSequence(self, call)

    def salt(self, call: CallSpec) -> str:
        """What keeps the call's prefixes apart on the server."""
        if not call.reuse.reads_prefix:
            return secrets.token_hex(16)
        return hashlib.sha256(f"{self._secret} {call.namespace}".encode()).hexdigest()[:32]

    def prefill(self, ids: Sequence[int], salt: str) -> Future[tuple[float, int | None] | None]:
        """Have the server compute a prompt ahead: the clock when it was done, and its prefix.

        None while other requests need the server. Raises `KvcommError` when it fails.
        """
        body = self._body(ids, salt) | {"max_tokens": 1, "temperature": 0.0}

        async def ask() -> tuple[float, int | None] | None:
            async with self._gate.spare() as free:
                if not free:
                    return None
                answer = await self._client.complete(body)
                return time.perf_counter(), cached(answer)

        return self._background.start(ask())

    def answer(
        self, ids: Sequence[int], salt: str, asked: Answer, emit: Callable[[Token], None]
    ) -> Future[int | None]:
        """Stream an answer to `emit`, which is called on another thread; returns its prefix.

        Raises what `Client.stream` raises. Cancelling the future ends the request.
        """
        sampling = asked.sampling
        body = self._body(ids, salt) | {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": asked.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        stop = self.stop | frozenset(sampling.stop_token_ids)
        reading = Reading(self.codec, sampling, stop, self.abilities.token_ids)

        async def read() -> int | None:
            async with (
                self._gate.ready() as place,
                aclosing(self._client.stream(body)) as pieces,
            ):
                async for piece in pieces:
                    place.begun = True
                    for token in reading.feed(piece, time.perf_counter()):
                        emit(token)
                    if reading.ended and not reading.finished:
                        break  # a stop token that the server does not know
            if not reading.ended:
                raise ServerError(f"the server at {self.device} ended an answer in the middle")
            return reading.cached

        return self._background.start(read())

    def _body(self, ids: Sequence[int], salt: str) -> dict[str, Any]:
        return {"model": self.model, "prompt": list(ids), **self.abilities.fields(salt)}

    async def drain(self) -> None:
        """Wait until nothing is computed ahead."""
        while self._gate.ahead:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """End all requests."""
        shut(self._background, self._client)


def shut(background: Background, client: Client) -> None:
    """Cancel what runs, then close the connections and the thread. Safe to call twice."""
    if background.closed:
        return
    background.cancel()
    background.run(client.close())
    background.close()
