"""A sequence as the runtime sees it: commands to the engine's thread, and events from there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from kvcomm.engine.base import READY, Answer, CallSpec, Divergence, Extended, Phases, Token
from kvcomm.engine.local.commands import Compare, Extend
from kvcomm.engine.local.core import Core
from kvcomm.engine.local.sampler import Sampler
from kvcomm.engine.local.state import Answering, Moment, SequenceState
from kvcomm.engine.segments import SegmentCache
from kvcomm.errors import KvcommError
from kvcomm.kv import Rope, content_key
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.policy import Policy


class Host(Protocol):
    """What a sequence needs of its engine."""

    core: Core
    rope: Rope
    segments: SegmentCache
    stop: frozenset[int]
    fingerprint: str

    def check(self, call: CallSpec) -> None: ...


class LocalSequence:
    """See `kvcomm.engine.base.EngineSequence` for the contract."""

    arrivals = None

    def __init__(self, engine: Host, call: CallSpec) -> None:
        self.phases = Phases()
        self.state = SequenceState(call, engine.rope, self.phases, call.priority)
        self._engine = engine
        self._ids: list[int] = []
        self._prompt = 0  # where the prompt ends and the answer begins
        self._exact = True
        self._tokens: asyncio.Queue[Token | BaseException] = asyncio.Queue()
        self._answers = False

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self._ids)

    @property
    def exact(self) -> bool:
        """Whether all its KV was computed from computed KV."""
        return self._exact

    @property
    def moment(self) -> Moment:
        """What it was realigned with, as it was."""
        return self.state.moment

    def set_priority(self, priority: int) -> None:
        """Change the sequence's priority."""
        self.state.priority = priority
        self._engine.core.call(self._engine.core.admit)

    async def extend(
        self,
        segments: Sequence[Segment],
        policy: Policy,
        *,
        last: Answer | None = None,
        settle: bool = True,
        ends: bool = False,
        at: object = None,
        measured: tuple[LocalSequence, int] | None = None,
    ) -> Extended:
        """Append segments; see `EngineSequence.extend`.

        The prompt `ends` with them, also where it is not answered. `at` are offset models of an
        earlier moment. `measured` is a dense sequence, and how many of its first layers show which
        tokens deviate.
        """
        call = self.state.call
        grown = self.length + sum(len(segment.rest) for segment in segments) + call.answer_tokens
        if grown > call.capacity:
            self._engine.check(replace(call, capacity=grown))
        answering = self._answering(last) if last is not None else None
        command = Extend(self.state, segments, policy, last, answering, settle, ends)
        command.at = at if isinstance(at, Moment) else None
        if measured is not None:
            command.measured = (measured[0].state, measured[1])
        found: Extended = await asyncio.wrap_future(self._engine.core.submit(command))
        for segment in segments:
            self._ids += segment.rest
        if last is not None or not self._answers:
            self._prompt = len(self._ids)
        self._answers |= last is not None
        self._exact &= not any(usage.realigned for usage in found.segments)
        return found

    def _answering(self, answer: Answer) -> Answering:
        return Answering(
            Sampler(answer.sampling, answer.seed),
            self._engine.stop | frozenset(answer.sampling.stop_token_ids),
            asyncio.get_running_loop(),
            self._tokens,
            record=[] if answer.record else None,
        )

    async def truncate(self, length: int) -> None:
        """Forget what stands behind `length`."""
        await asyncio.wrap_future(self._engine.core.call(lambda: self.state.truncate(length)))
        del self._ids[length:]

    async def answer(self) -> AsyncGenerator[Token, None]:
        """The answer's tokens as they are sampled."""
        while True:
            item = await self._tokens.get()
            if isinstance(item, BaseException):
                raise item
            if item.last is None:
                self._ids.append(item.id)
            yield item
            if item.last:
                return

    async def stop(self, kept: int) -> None:
        """End the answer here; its first `kept` tokens count."""
        # The last token that is known may have no KV yet.
        length = self._prompt + max(kept - 1, 0)
        del self._ids[length:]

        def end() -> None:
            self._engine.core.steps.end_answer(self.state, held=self.state.call.followed)
            if self.state.answering is not None:
                self.state.answering.token = None
            if self.state.ended is None:
                del self.state.ids[length:]

        await asyncio.wrap_future(self._engine.core.call(end))

    async def publish(self, message: Outgoing, readers: int) -> Handle | None:
        """A handle on the KV of a message answered here, for so many readers."""
        spans = []
        slots: list[int] = []
        for span in message.spans:
            # The last sampled token was never computed: it has no slot.
            held = min(span.length, len(self._ids) - self._prompt - span.source)
            if held > 0:
                spans.append((span.start, span.start + held))
                begin = self._prompt + span.source
                slots += range(begin, begin + held)
        if not slots:
            return None
        call = self.state.call
        lineage = () if self._exact else (secrets.token_hex(8),)
        key = content_key(
            self._engine.fingerprint, call.namespace, "message", self._ids, slots, lineage
        )

        def put() -> None:
            if self.state.buffer is not None:
                entry = self._engine.segments.publish(key, self.state, slots, readers)
                self.state.views.append(entry)

        self._engine.core.call(put)
        return Handle(key, len(message.ids), tuple(spans), self._exact)

    async def finish(self, segments: Sequence[Segment] = (), offsets: str = "") -> None:
        """The message is out: settle what was answered, and learn what the plan asked for."""
        core = self._engine.core
        core.call(lambda: core.finish(self.state, segments, offsets))

    async def compare(self, dense: LocalSequence) -> Divergence:
        """How far this sequence's prompt is from `dense`, which answered and recorded."""
        command = Compare(self.state, dense.state)
        found: Divergence = await asyncio.wrap_future(self._engine.core.submit(command))
        return found

    async def close(self) -> None:
        """Give the memory back."""
        with suppress(KvcommError):  # the engine is closed, and all its memory free
            self._engine.core.call(lambda: self._engine.core.end(self.state), READY)
