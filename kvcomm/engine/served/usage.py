"""What a server computed of one growing prompt, when, and what its cache held already."""

from __future__ import annotations

from kvcomm.engine.usage import Arrival, cut_back


class ServedUsage:
    """Requests on one prompt as they are answered: `again` tokens were computed once more."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.again = 0

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
