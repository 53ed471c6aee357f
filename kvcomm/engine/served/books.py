"""The books of a served row: what the server computed of it, when, and what it had already."""

from __future__ import annotations

from kvcomm.engine.base import Arrived


class Books:
    """Requests on one growing prompt, as they are answered; `sent` tokens of it were in them."""

    def __init__(self) -> None:
        self.sent = 0
        self.arrived: list[Arrived] = []
        self._wasted = 0

    def add(self, at: float, tokens: int, cached: int | None) -> None:
        """The server is done with the first `tokens`, of which its cache held `cached`.

        What it has not kept from an earlier request of this row, it has computed again.
        """
        new = max(tokens - self.sent, 0)
        again = 0 if cached is None else max(min(self.sent, tokens) - cached, 0)
        prefix = min(max((cached or 0) - self.sent, 0), new)
        self.arrived.append(Arrived(at, new, prefix, again + self._wasted))
        self._wasted = 0
        self.sent = max(self.sent, tokens)

    def truncate(self, length: int) -> None:
        """The prompt has lost what stood behind `length`."""
        while self.sent > length:
            last = self.arrived.pop()
            kept = max(last.tokens - (self.sent - length), 0)
            prefix = min(last.prefix, kept)
            self._wasted += (last.tokens - last.prefix) - (kept - prefix)
            self.sent -= last.tokens - kept
            if kept:
                self.arrived.append(Arrived(last.at, kept, prefix, last.again))
            else:
                self._wasted += last.again
