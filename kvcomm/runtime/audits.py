"""Audits: what `auto` measures behind answers, and what the offset models learn there.

A realigned call is audited by a shadow evaluation: the same prompt computed, answered greedily, and
compared with the prompt as it was realigned. The levels to be probed are compared with it as well.
The computed prompt teaches the offset models. All of it is rebuilt from token ids, behind answers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kvcomm.background import Background
from kvcomm.engine.base import SAME_TEXT, Compared, Engine, Variant
from kvcomm.engine.usage import ranges
from kvcomm.errors import KvcommError
from kvcomm.message import Handle
from kvcomm.reuse.auto import Auto, Choice
from kvcomm.reuse.recipe import LINEAR, Realign, Recipe
from kvcomm.reuse.replay import Planned, Replay
from kvcomm.runtime.call import Answered
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

log = logging.getLogger(__name__)

# So many audits wait at most: what comes then is not measured.
WAITING = 64


@dataclass(frozen=True)
class Audit:
    """One call to be measured; what is found is written by `recorder` and put into `found`.

    A call without a level to measure is only read: its inputs are known then.
    """

    answered: Answered
    choice: Choice
    recorder: Recorder
    found: list[Audited]

    def used(self, level: Recipe) -> bool:
        """Whether the call was realigned at this level, and not all of it computed after all."""
        choice = self.choice
        return choice.used and not self.answered.exact and level is choice.measured[0]

    @property
    def handles(self) -> list[Handle]:
        """The messages whose KV is needed."""
        return [s.handle for s in self.answered.segments if s.handle is not None]


@dataclass
class AuditQueue:
    """A session's audits, one after another, behind everything else, on a thread of their own.

    `on_learned` is called when something was learned.
    """

    engine: Engine
    auto: Auto
    on_learned: Callable[[], object] = lambda: None
    _background: Background | None = None
    _waiting: deque[Audit] = field(default_factory=deque)
    _left: int = 0  # those that wait, and the one that is being made
    _working: Future[None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, audit: Audit) -> None:
        """Note a call to be measured; what there is no room for is not measured."""
        kept = []
        for handle in audit.handles:
            if self._left >= WAITING or not self.engine.retain(handle):
                break
            kept.append(handle)
        if self._left >= WAITING or len(kept) < len(audit.handles):
            for handle in kept:
                self.engine.release(handle)
            reason = "not measured: too much waits to be measured already"
            for level in audit.choice.measured:
                self._record(audit, level, None, 0, error=reason)
            audit.recorder.release()
            return
        with self._lock:
            self._waiting.append(audit)
            self._left += 1

    def start(self) -> None:
        """Measure what is noted. A run calls it when it has answered: its calls come first."""
        with self._lock:
            if self._waiting and self._working is None:
                if self._background is None:
                    self._background = Background("kvcomm-audits")
                    self.engine.before_close.add(self.abandon)
                self._working = self._background.start(self._work())

    @property
    def waiting(self) -> int:
        """How many calls are still to be measured, or are being."""
        return self._left

    async def drain(self) -> None:
        """Wait until all are measured."""
        self.start()
        while (working := self._working) is not None:
            await asyncio.wait([asyncio.wrap_future(working)])

    def close(self) -> None:
        """Finish all audits."""
        self.start()
        if self._background is not None:
            try:
                self._background.run(self.drain())
            finally:
                self.abandon()

    def abandon(self) -> None:
        """Give up what is not measured yet: the engine is closed before the session."""
        with self._lock:
            background, self._background = self._background, None
        if background is not None:
            self.engine.before_close.discard(self.abandon)
            background.close()

    async def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._waiting:
                        self._working = None
                        return
                    audit = self._waiting.popleft()
                try:
                    await self._measure(audit)
                finally:
                    with self._lock:
                        self._left -= 1
        except BaseException:
            with self._lock:
                left, self._working, self._left = [*self._waiting], None, 0
                self._waiting.clear()
            for audit in left:
                self._release(audit)
            raise

    async def _measure(self, audit: Audit) -> None:
        """Measure what was chosen, and learn; a failure is recorded and harms nobody."""
        answered, choice = audit.answered, audit.choice
        try:
            evaluation = await self.engine.evaluate(
                answered.spec,
                answered.segments,
                [self._variant(audit, level) for level in choice.measured],
                learn=[LINEAR.offsets],
                tokens=SAME_TEXT if choice.measured else 1,
            )
            tokens = evaluation.tokens
            if not choice.measured:
                self._record(audit, None, None, tokens)
            found, used = {}, ""
            for level, compared in zip(choice.measured, evaluation.variants, strict=True):
                if compared.divergence is not None:
                    found[level.name] = compared.divergence.mean
                    used = level.name if audit.used(level) else used
                    self._record(audit, level, compared, tokens + compared.tokens)
                    tokens = 0
            self.auto.record(choice.key, found, choice.samples, used)
        except Exception as error:
            for level in choice.measured:
                self._record(audit, level, None, 0, error=f"{type(error).__name__}: {error}")
        else:
            self.on_learned()
        finally:
            self._release(audit)

    def _variant(self, audit: Audit, level: Recipe) -> Variant:
        answered = audit.answered
        if not audit.used(level):
            return Variant(Realign(level, budget=self.auto.budget, borrows=True))
        planned = [
            Planned(
                usage.name,
                usage.tokens,
                usage.source,
                tuple(ranges(usage.positions)),
                usage.corrected,
                usage.scale,
                borrowed=bool(usage.lender),
            )
            for usage in answered.usage
        ]
        replay = Replay(planned, level.offsets)
        replay.options = replace(replay.options, bases="borrowed")
        return Variant(replay, answered.moment)

    def _release(self, audit: Audit) -> None:
        with suppress(KvcommError):  # the engine is closed, and all its KV gone
            for handle in audit.handles:
                self.engine.release(handle)
        audit.recorder.release()

    def _record(
        self,
        audit: Audit,
        level: Recipe | None,
        found: Compared | None,
        tokens: int,
        error: str = "",
    ) -> None:
        choice, answered = audit.choice, audit.answered
        name, used = level.name if level else "", bool(level and audit.used(level))
        divergence = found.divergence if found else None
        event = audit.recorder.write(
            Audited,
            node=answered.spec.node,
            attempt=answered.attempt,
            level=name,
            used=used,
            target=self.auto.target,
            bound=choice.bounds.get(name),
            divergence=divergence.mean if divergence else None,
            first_divergence=divergence.first if divergence else None,
            top1_agreement=divergence.top1 if divergence else None,
            same_text=divergence.same_text if divergence else None,
            tokens=tokens,
            error=error,
        )
        audit.found.append(event)
