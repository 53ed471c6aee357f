"""From the pieces of a streamed completion to tokens."""

from __future__ import annotations

from collections.abc import Iterator

from kvcomm.engine.base import Token
from kvcomm.engine.served.abilities import cached
from kvcomm.engine.served.client import Json
from kvcomm.errors import ServerError
from kvcomm.prompt import Codec
from kvcomm.sampling import Sampling


class Reading:
    """Reads one answer. `stop` ends it, as does the server.

    A server that gives no ids has its texts encoded piece by piece: a piece is mostly a token, and
    what agents hear has the same text in any case. One token is held back then, because only the
    piece behind it says whether it was the last.
    """

    def __init__(
        self, codec: Codec, sampling: Sampling, stop: frozenset[int], token_ids: bool
    ) -> None:
        self._codec = codec
        self._limit = sampling.max_tokens
        self._stop = stop
        self._token_ids = token_ids
        self._held: Token | None = None
        self._count = 0
        self.ended = False  # the last token is out
        self.finished = False  # the server writes no more
        self.cached: int | None = None

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
        if self._token_ids:
            return list(choice.get("token_ids") or ())
        text = choice.get("text")
        return self._codec.encode(text) if isinstance(text, str) and text else []

    def _token(self, token: int, at: float) -> Iterator[Token]:
        self._count += 1
        self.ended = token in self._stop or self._count >= self._limit
        if self._held:
            yield self._held
            self._held = None
        if token in self._stop:
            yield Token(token, at, "stop")
        elif self.ended:
            yield Token(token, at, "length")
        elif self._token_ids:
            yield Token(token, at)
        else:
            self._held = Token(token, at)

    def _end(self, reason: str, at: float) -> Iterator[Token]:
        """The server has ended where no token told so."""
        self.ended = True
        if self._held and reason == "length":
            yield Token(self._held.id, self._held.at, "length")
            return
        if self._held:
            yield self._held
        yield Token(min(self._stop, default=0), at, "stop")
