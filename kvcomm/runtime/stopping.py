"""Texts that end an answer: found while it is decoded, and cut off with what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence

from kvcomm.message import CHARACTER, TextCodec


class StopTexts:
    """Watches one answer for the first of several texts."""

    def __init__(self, codec: TextCodec, texts: Sequence[str]) -> None:
        self._codec = codec
        self._texts = texts
        self._ids: list[int] = []
        # A text that ends with the latest token reaches no further back.
        self._window = CHARACTER * max(map(len, texts), default=0) + 1

    def end(self, token: int) -> bool:
        """Whether the answer ends with this token, because a text is complete."""
        if not self._texts:
            return False
        self._ids = [*self._ids, token][-self._window :]
        said = self._codec.decode(self._ids)
        return any(text in said for text in self._texts)


def before(stops: Sequence[str], text: str, begun: str = "") -> str:
    """What stands in `text` before the first of `stops`, which are not sought in `begun`."""
    found = [at for stop in stops if (at := text.find(stop, len(begun))) >= 0]
    return text[: min(found, default=len(text))]
