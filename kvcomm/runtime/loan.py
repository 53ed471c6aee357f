"""Loans: KV of a text that several agents read, as the first of them computed it in its prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvcomm.message import Handle


class Loan:
    """What the first reader of a text lends to the others: a handle, once its prompt is computed.

    In a prompt a text is read together with what stands before it. KV from there errs less in the
    next prompt than that of the text alone, and costs nothing: the first reader computes it anyway.
    `uses` are the engine's steps at which the others read it. `settled` without a handle: nothing
    was lent, and they compute the text themselves.
    """

    def __init__(self, lender: str, uses: Sequence[int]) -> None:
        self.lender = lender
        self.uses = tuple(uses)
        self.handle: Handle | None = None
        self.settled = False
        self._changed = asyncio.Event()

    def settle(self, handle: Handle | None) -> None:
        """This is lent, or nothing. The first word counts."""
        if not self.settled:
            self.handle, self.settled = handle, True
            self._changed.set()

    async def given(self) -> Handle | None:
        """Wait until it is settled."""
        await self._changed.wait()
        return self.handle
