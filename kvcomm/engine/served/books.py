"""The books of a served row: what the server computed of it, when, and what it had already."""

from __future__ import annotations

from typing import NamedTuple

from kvcomm.engine.usage import Arrival


class Stretch(NamedTuple):
    """`tokens` of a prompt that were there at `at`; a cache held the first `prefix` of them.

    `again` tokens before it were computed once more.
    """

    at: float
    tokens: int
    prefix: int
    again: int = 0


class Books:
    """Requests on one growing prompt, as they are answered; `sent` tokens of it were in them."""

    def __init__(self) -> None:
        self.sent = 0
        self._stretches: list[Stretch] = []
        self._wasted = 0

    def add(self, at: float, tokens: int, cached: int | None) -> None:
        """The server is done with the first `tokens`, of which its cache held `cached`.

        What it has not kept from an earlier request of this row, it has computed again.
        """
        new = max(tokens - self.sent, 0)
        again = 0 if cached is None else max(min(self.sent, tokens) - cached, 0)
        prefix = min(max((cached or 0) - self.sent, 0), new)
        self._stretches.append(Stretch(at, new, prefix, again + self._wasted))
        self._wasted = 0
        self.sent = max(self.sent, tokens)

    def truncate(self, length: int) -> None:
        """The prompt has lost what stood behind `length`."""
        while self.sent > length:
            last = self._stretches.pop()
            kept = max(last.tokens - (self.sent - length), 0)
            prefix = min(last.prefix, kept)
            self._wasted += (last.tokens - last.prefix) - (kept - prefix)
            self.sent -= last.tokens - kept
            if kept:
                self._stretches.append(Stretch(last.at, kept, prefix, last.again))
            else:
                self._wasted += last.again

    def arrivals(self) -> tuple[list[Arrival], int]:
        """The stretches of the prompt, and the tokens that were computed once more."""
        found = [Arrival(at, tokens, tokens - prefix) for at, tokens, prefix, _ in self._stretches]
        return found, sum(stretch.again for stretch in self._stretches)
