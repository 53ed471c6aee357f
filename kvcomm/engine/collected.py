"""What engines share that hold no KV themselves: they collect a prompt's ids until it is asked."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvcomm.engine.base import (
    Answer,
    CallSpec,
    Capabilities,
    Extended,
    LearnedState,
    Phases,
    ShadowEvaluation,
    Token,
)
from kvcomm.engine.usage import Arrival, SegmentUsage
from kvcomm.errors import KvcommError
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import BaseKind, Predictability, SegmentFacts
from kvcomm.reuse.policy import Policy


class WithoutKV:
    """The part of `kvcomm.engine.base.Engine` that is about KV, where there is none to hold."""

    model: str
    capabilities: Capabilities

    def retain(self, handle: Handle) -> bool:
        return False

    def release(self, handle: Handle) -> None:
        pass

    def predictability(self, call: CallSpec, offsets: str) -> dict[str, Predictability]:
        return {}

    def bases(self, call: CallSpec, texts: Mapping[str, Sequence[int]]) -> Mapping[str, BaseKind]:
        return {}

    async def evaluate(self, *_: Any, **__: Any) -> ShadowEvaluation:
        """Refused: the session never plans reuse on such an engine."""
        raise KvcommError(f"{self.model} cannot reuse KV")

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        return 0

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        return LearnedState(None, 0, 0, self.capabilities.reason)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        return 0

    async def drain(self) -> None:
        pass


class CollectedSequence:
    """A prompt as ids; see `kvcomm.engine.base.EngineSequence`. Subclasses answer it."""

    exact = True
    moment = None
    arrivals: tuple[Sequence[Arrival], int] | None = None

    def __init__(self, engine: Any, call: CallSpec) -> None:
        self.phases = Phases()
        self._engine = engine
        self._call = call
        self._ids: list[int] = []
        self._placed: list[tuple[int, Segment]] = []  # where each begins
        self._answer: Answer | None = None

    @property
    def length(self) -> int:
        return len(self._ids)

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
    ) -> Extended:
        if policy.options.realigns:
            raise KvcommError(f"{self._engine.model} cannot reuse KV")
        self._fits(segments)
        plan = policy.plan([SegmentFacts(s.kind, s.name, len(s)) for s in segments])
        self._answer = last
        pairs = zip(segments, plan.segments, strict=True)
        usage = [self._append(segment, planned.reason) for segment, planned in pairs]
        return Extended(usage, plan.decision, plan.dense)

    def _fits(self, segments: Sequence[Segment]) -> None:
        """Raise `ContextOverflow` for segments beyond the model's context."""
        rest = sum(len(segment.rest) for segment in segments)
        needed = self.length + rest + self._call.answer_tokens
        if needed > self._call.capacity:
            self._engine.check(replace(self._call, capacity=needed))

    def _append(self, segment: Segment, reason: str) -> SegmentUsage:
        """Append a segment that is computed."""
        self._placed.append((self.length - segment.done, segment))
        self._ids += segment.rest
        tokens = len(segment.rest)
        piece = (segment.index, segment.kind, segment.name, segment.rest, tokens, 0, 0)
        arrivals = (Arrival(time.perf_counter(), tokens, tokens),)
        return SegmentUsage(*piece, "compute", reason, arrivals=arrivals)

    async def truncate(self, length: int) -> None:
        del self._ids[length:]
        self._placed = [(begin, segment) for begin, segment in self._placed if begin < length]

    def answer(self) -> AsyncGenerator[Token, None]:
        raise NotImplementedError

    async def stop(self, kept: int) -> None:
        await self.close()

    async def publish(self, message: Outgoing, readers: int) -> Handle | None:
        return None  # messages travel as text

    async def finish(self, segments: Sequence[Segment] = (), offsets: str = "") -> None:
        pass

    def set_priority(self, priority: int) -> None:
        pass  # calls run in the order in which they are asked

    async def close(self) -> None:
        raise NotImplementedError
