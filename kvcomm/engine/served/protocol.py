"""What a server does beyond the standard, how much at once, and what its answers mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kvcomm.engine.base import Token
from kvcomm.engine.served.client import Json
from kvcomm.engine.usage import Arrival, cut_back
from kvcomm.errors import ServerError
from kvcomm.prompt import Codec

# With what option servers do.
TOLD = "vLLM: --enable-prompt-tokens-details, SGLang: --enable-cache-report"


@dataclass(frozen=True)
class Abilities:
    """`token_ids`: answers come as ids. `salt`: prefixes can be kept apart. `counts`: the server
    says how much of a prompt its prefix cache held. `refused`: why it realigns nothing, where it
    could.
    """

    token_ids: bool
    salt: bool
    counts: bool
    refused: str = ""

    def fields(self, salt: str) -> dict[str, Any]:
        """The fields of a request that need them."""
        ids = {"return_token_ids": True} if self.token_ids else {}
        return ids | ({"cache_salt": salt} if self.salt else {})

    def body(self, model: str, prompt: object, salt: str, **more: Any) -> dict[str, Any]:
        """A request for a completion."""
        return {"model": model, "prompt": prompt, **self.fields(salt), **more}

    @property
    def lacks(self) -> str:
        """What it cannot do and what follows from that; empty when it can do everything."""
        lacks = {
            "it gives no token ids, so answers are encoded again": not self.token_ids,
            "it refuses cache_salt, so modes and namespaces share its prefix cache": not self.salt,
            f"it does not say what its prefix cache held ({TOLD})": not self.counts,
        }
        said = [*(said for said, lacking in lacks.items() if lacking), self.refused]
        return "; ".join(filter(None, said))


class Gate:
    """At most `limit` requests at once, and half of that ahead of their inputs.

    Real ones wait in turn, those ahead take what is left. All methods belong to one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._most_ahead = max(limit // 2, 1)
        self._urgent: set[object] = set()  # those without a first token yet
        self.ahead = 0

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place; what comes with it is to be called at the first token."""
        request = object()
        self._urgent.add(request)
        try:
            async with self._free:
                yield partial(self._urgent.discard, request)
        finally:
            self._urgent.discard(request)

    @asynccontextmanager
    async def spare(self) -> AsyncIterator[bool]:
        """A place that nobody waits for, while nobody waits for a first token; else False."""
        if self._urgent or self._free.locked() or self.ahead >= self._most_ahead:
            yield False
            return
        self.ahead += 1
        try:
            async with self._free:
                yield True
        finally:
            self.ahead -= 1


def cached(piece: Json) -> int | None:
    """The tokens of the prompt that the prefix cache held; None where nothing is said."""
    found: Any = piece
    for name in ("usage", "prompt_tokens_details", "cached_tokens"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else None


@dataclass
class Reading:
    """Reads one answer of at most `limit` tokens. `stop` ends it, as does the server.

    A server that gives no ids has its texts encoded piece by piece: a piece is mostly a token, and
    what agents hear has the same text in any case. One token is held back then, because only the
    piece behind it says whether it was the last.
    """

    codec: Codec
    limit: int
    stop: frozenset[int]
    token_ids: bool
    ended: bool = False  # the last token is out
    finished: bool = False  # the server writes no more
    cached: int | None = None
    _held: Token | None = None
    _count: int = 0

    def feed(self, piece: Json, at: float) -> Iterator[Token]:
        """The tokens of a piece that came at the clock `at`."""
        found = cached(piece)
        self.cached = self.cached if found is None else found
        for choice in (piece.get("choices") or ())[:1]:
            for token in self._ids(choice):
                if not self.ended:
                    yield from self._token(token, at)
            if reason := choice.get("finish_reason"):
                if reason not in ("stop", "length"):
                    raise ServerError(f"the server ended an answer with {reason!r}")
                self.finished = True
                if not self.ended:
                    yield from self._end(reason, at)

    def _ids(self, choice: Json) -> list[int]:
        if self.token_ids:
            return list(choice.get("token_ids") or ())
        text = choice.get("text")
        return self.codec.encode(text) if isinstance(text, str) and text else []

    def _token(self, token: int, at: float) -> Iterator[Token]:
        self._count += 1
        self.ended = token in self.stop or self._count >= self.limit
        if self._held:
            yield self._held
            self._held = None
        if self.ended:
            yield Token(token, at, "stop" if token in self.stop else "length")
        elif self.token_ids:
            yield Token(token, at)
        else:
            self._held = Token(token, at)

    def _end(self, reason: str, at: float) -> Iterator[Token]:
        """The server has ended where no token told so."""
        self.ended = True
        if self._held and reason == "length":
            yield replace(self._held, last="length")
            return
        if self._held:
            yield self._held
        yield Token(min(self.stop, default=0), at, "stop")


@dataclass
class ServedUsage:
    """What a server computed of one growing prompt, when, and what its cache held already.

    `again` tokens were computed once more.
    """

    arrivals: list[Arrival] = field(default_factory=list)
    again: int = 0

    @property
    def sent(self) -> int:
        """Tokens of the prompt that were in a request."""
        return sum(arrival.tokens for arrival in self.arrivals)

    def add(self, at: float, tokens: int, cached: int | None) -> None:
        """The server is done with the first `tokens`, of which its cache held `cached`.

        What it has not kept from an earlier request, it has computed again.
        """
        sent = self.sent
        new = max(tokens - sent, 0)
        if cached is not None:
            self.again += max(min(sent, tokens) - cached, 0)
        prefix = min(max((cached or 0) - sent, 0), new)
        self.arrivals.append(Arrival(at, new, new - prefix))

    def truncate(self, length: int) -> None:
        """The prompt has lost what stood behind `length`."""
        self.again += cut_back(self.arrivals, max(self.sent - length, 0))
