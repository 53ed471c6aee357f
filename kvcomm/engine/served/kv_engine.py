"""The engine over HTTP where the server has kvcomm's connector: prompts are realigned there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcomm.engine.base import (
    SAME_TEXT,
    CallSpec,
    Capabilities,
    LearnedState,
    ShadowEvaluation,
    Variant,
)
from kvcomm.engine.served.audit import evaluated
from kvcomm.engine.served.client import Json
from kvcomm.engine.served.engine import ServedEngine
from kvcomm.engine.served.publishing import PublishingSequence
from kvcomm.engine.served.realigned import RealignedSequence
from kvcomm.engine.served.supply import Supply
from kvcomm.message import Handle
from kvcomm.prompt import Hole, Segment, compile_template
from kvcomm.reuse.offsets import labels_of
from kvcomm.reuse.plan import BaseKind, Predictability
from kvcomm.reuse.policy import SHADOW, Policy
from kvcomm.reuse.state import belongs, learned_by


@dataclass(eq=False, repr=False)
class ServedKVEngine(ServedEngine):
    """A `ServedEngine` whose server keeps KV by name, and fills prompts with it; see `Supply`.

    `about` is what the connector said of itself.
    """

    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.capabilities = Capabilities(reuse=True, exact=True, reason=self.abilities.lacks)
        self.supply = Supply(self.fingerprint)
        self.header = compile_template(self.codec.undated, (), (Hole("text"),)).literals[0]
        self._behind: set[Future[Any]] = set()

    def open(self, call: CallSpec) -> PublishingSequence:
        self.check(call)
        if call.reuse.realigns:
            return RealignedSequence(self, call)
        return PublishingSequence(self, call)

    async def asked(self, body: Callable[[], Json], *, ahead: bool = False) -> Json | None:
        """What the server answers, in one piece, in its turn, to what `body` is then.

        `ahead` of its inputs: None, while other requests need the server.
        """

        async def ask() -> Json | None:
            if ahead:
                async with self.gate.spare() as free:
                    return await self.client.ask("completions", body()) if free else None
            async with self.gate.ready() as begun:
                answer = await self.client.ask("completions", body())
                begun()
                return answer

        return await asyncio.wrap_future(self.background.start(ask()))

    def behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for, but `drain`."""
        task = self.background.start(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def drain(self) -> None:
        while self._behind:
            waited = [asyncio.wrap_future(task) for task in tuple(self._behind)]
            await asyncio.gather(*waited, return_exceptions=True)
        await super().drain()

    def retain(self, handle: Handle) -> bool:
        return self.supply.retain(handle.key)

    def release(self, handle: Handle) -> None:
        self.supply.release(handle.key)

    def predictability(self, call: CallSpec, offsets: str) -> dict[str, Predictability]:
        stem = learned_by(call.template, call.namespace)
        labels = labels_of(offsets, call.template.names, call.messages)
        return {name: self.supply.says((offsets, stem, label)) for name, label in labels.items()}

    def bases(self, call: CallSpec, texts: Mapping[str, Sequence[int]]) -> Mapping[str, BaseKind]:
        found = {
            name: self.supply.input(call.namespace, ids, borrowed=True)
            for name, ids in texts.items()
        }
        return {name: named.kind for name, named in found.items() if named is not None}

    async def evaluate(
        self,
        call: CallSpec,
        segments: Sequence[Segment],
        variants: Sequence[Variant],
        *,
        reference: Policy = SHADOW,
        learn: Sequence[str] = (),
        distinct: bool = True,
        tokens: int = SAME_TEXT,
    ) -> ShadowEvaluation:
        return await evaluated(self, call, segments, variants, learn, distinct, tokens)

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """What was learned stays on the server: this says how much there is of it."""
        mine = {
            model: told
            for model, told in self.supply.models.items()
            if belongs(model[1], namespace)
        }
        samples = sum(told.samples for told in mine.values())
        where = str(self.about.get("state") or "")
        reason = "on the server" if where else "on the server, until that ends"
        return LearnedState(where or None, len({model[1] for model in mine}), samples, reason)
