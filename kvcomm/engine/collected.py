"""What engines share that hold no KV themselves: they collect a prompt's ids until it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kvcomm.engine.base import (
    Answer,
    Arrived,
    Call,
    Capabilities,
    Divergence,
    EngineSequence,
    Extended,
    Learned,
    Phases,
    Survey,
    Token,
)
from kvcomm.errors import KvcommError
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Step, Verdict


class WithoutStore:
    """The part of `kvcomm.engine.base.Engine` that is about KV, where there is none to hold."""

    capabilities: Capabilities

    async def release(self, handle: Handle, use: int) -> None:
        """Nothing is ever pinned."""

    async def quiet(self) -> None:
        """Nothing is computed ahead."""

    async def outlook(self, call: Call) -> dict[str, Verdict]:
        """Nothing is known."""
        return {}

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """Nothing is learned."""
        return 0

    async def load_state(self, folder: Path, namespace: str = "") -> Learned:
        """Nothing is learned without reuse."""
        return Learned(None, 0, 0, self.capabilities.reason)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Nothing is learned without reuse."""
        return 0


class _Engine(Protocol):
    model: str

    def check(self, call: Call) -> None: ...


class CollectedSequence:
    """A prompt as ids; see `kvcomm.engine.base.EngineSequence`. Subclasses answer it."""

    exact = True

    def __init__(self, engine: _Engine, call: Call) -> None:
        self.phases = Phases()
        self._engine = engine
        self._call = call
        self._ids: list[int] = []
        self._answer: Answer | None = None

    @property
    def length(self) -> int:
        """Tokens collected."""
        return len(self._ids)

    @property
    def arrived(self) -> Sequence[Arrived] | None:
        """As `extend` said."""
        return None

    async def survey(
        self,
        segments: Sequence[Segment],
        *,
        literals: bool = True,
        last: bool = True,
    ) -> Survey:
        """Refused: the session never plans reuse on such an engine."""
        raise KvcommError(f"{self._engine.model} cannot reuse KV")

    async def extend(
        self,
        segments: Sequence[Segment],
        steps: Sequence[Step],
        *,
        settle: bool = True,
        answer: Answer | None = None,
    ) -> list[Extended]:
        """Append the segments' ids."""
        self._answer = answer
        for segment in segments:
            self._ids += segment.rest
        return [
            Extended("compute", len(segment.rest), 0, 0, step.reason)
            for segment, step in zip(segments, steps, strict=True)
        ]

    async def reserve(self, capacity: int) -> None:
        """Room is not an issue; the context is."""
        self._engine.check(replace(self._call, capacity=capacity))

    async def settle(self) -> None:
        """Nothing is cached here."""

    async def truncate(self, length: int) -> None:
        """Forget ids from `length` on."""
        del self._ids[length:]

    def decode(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End the answer here."""
        await self.close()

    async def publish(self, message: Outgoing, uses: Sequence[int]) -> Handle | None:
        """Messages travel as text: there is no KV to hand out."""
        return None

    async def lend(self, start: int, tokens: int, uses: Sequence[int]) -> Handle | None:
        """There is no KV to lend."""
        return None

    async def observe(self, learn: Sequence[int], offsets: str | None = None) -> None:
        """Nothing is learned."""

    async def compare(self, dense: EngineSequence) -> Divergence:
        """All of it was computed: it is dense."""
        return Divergence(0.0, 0.0, 1.0, True)

    def hurry(self, priority: int) -> None:
        """Calls run in the order in which they are asked."""

    async def lost(self) -> None:
        """Never: it has no room to lose."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop answering."""
        raise NotImplementedError
