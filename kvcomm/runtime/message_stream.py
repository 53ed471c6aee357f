"""A message while it is being written, and the texts a stream shows of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kvcomm.message import Message, TextCodec


@dataclass(eq=False)
class MessageStream:
    """What a node has generated so far; its readers prefill it meanwhile, and compare token ids.

    `limit` is the most tokens it is expected to have; `followable` says that its tokens are worth
    prefilling before the message is done; `spoken`, that a model writes them, so that KV comes with
    them.
    `ids` is only a guess at the message until `sealed`: post-processing may cut it, and a failed
    attempt starts over. `sealed` is set when the final ids are known, `message` a moment later,
    when the handle is there too.
    """

    limit: int
    followable: bool
    spoken: bool = True
    ids: tuple[int, ...] | list[int] = field(default_factory=list)
    sealed: bool = False
    finished_at: float = 0.0
    message: Message | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, token: int) -> None:
        """One more generated token."""
        assert isinstance(self.ids, list)
        self.ids.append(token)
        self._notify()

    def restart(self) -> None:
        """The attempt failed: forget what it wrote."""
        self.ids = []
        self._notify()

    def seal(self, ids: tuple[int, ...], finished_at: float) -> None:
        """The message's final ids; `finished_at` is the clock of the last sampled token."""
        self.ids, self.sealed, self.finished_at = ids, True, finished_at
        self._notify()

    def deliver(self, message: Message) -> None:
        """The message with its handle."""
        self.message = message
        self._notify()

    @property
    def most(self) -> int:
        """The most tokens it will have."""
        return len(self.ids) if self.sealed else self.limit

    @property
    def remaining(self) -> int:
        """The most tokens that may still come: a guess at which of several messages ends last."""
        return 0 if self.sealed else max(self.limit - len(self.ids), 1)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def delivered(self) -> Message:
        """Wait for the message."""
        while self.message is None:
            await self.change()
        return self.message


class Detokenizer:
    """Turns tokens into text pieces as they come, holding back half of a character."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text is out
        self._start = 0  # context that keeps spaces right

    def feed(self, token: int) -> str:
        """The new text, empty while a character is incomplete."""
        self._ids.append(token)
        before = self._codec.decode(self._ids[self._start : self._shown])
        after = self._codec.decode(self._ids[self._start :])
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]
