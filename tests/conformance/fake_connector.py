"""kvcomm's connector as the fake server has it: its store is a local engine's segment cache."""

import asyncio
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from kvcomm.engine import realign
from kvcomm.engine.base import Answer, CallSpec, Token
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.engine.realign import Base
from kvcomm.kv import KV
from kvcomm.message import Handle
from kvcomm.prompt import Segment
from kvcomm.reuse.plan import Predictability
from kvcomm.reuse.policy import ReuseOptions
from kvcomm.vllm.protocol import Piece, Reply, Request, salt_of
from tests.engine.support import DENSE, PLAIN, Given, rotated


@dataclass
class Kept:
    """A row: its ids so far, and their KV, position-free."""

    ids: tuple[int, ...]
    kv: KV


@dataclass
class FakeConnector:
    """Fills prompts from `names`, and says of the last request what it did."""

    engine: LocalEngine
    refused: str = ""
    names: dict[str, KV] = field(default_factory=dict)
    rows: dict[str, Kept] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    supplied: list[tuple[int, int]] = field(default_factory=list)
    told: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))

    async def fill(
        self, seq: LocalSequence, ids: tuple[int, ...], request: Request, salt: str, asked: Answer
    ) -> tuple[int, list[str]]:
        """Extend a sequence by a prompt; returns how much was supplied, and what is missing."""
        missing = [piece.name for piece in request.pieces if piece.name not in self.names]
        begun: list[tuple[int, int, KV]] = []
        at = 0
        if request.row and salt == salt_of(request.row) and not self.refused:
            row = self.rows.get(request.row)
            if row is not None and row.ids == ids[: len(row.ids)]:
                at = min(len(row.ids), len(ids) - 1)
                begun.append((0, at, row.kv.slice(0, at)))
            for piece in request.pieces:
                stop = min(piece.stop, len(ids) - 1)
                if not piece.start <= at < stop or piece.name in missing:
                    continue
                begun.append((at, stop, await self._realigned(piece, at, stop)))
                at = stop
        segments, plans = [], {}
        for number, (start, stop, kv) in enumerate(begun):
            key = f"fake-{id(seq)}-{number}"
            await self.engine.call(lambda key=key, kv=kv: self.engine.segments.put(key, kv))
            handle = Handle(key, stop - start, ((0, stop - start),), False)
            segments.append(Segment("placeholder", "x", ids[start:stop], handle, 0, number))
            plans[number] = rotated()
        segments.append(Segment("literal", "rest", ids[at:], index=len(segments)))
        policy = Given(plans) if plans else DENSE
        await seq.extend(segments, policy, last=asked)
        self.supplied.append((0, at))
        return at, missing

    async def _realigned(self, piece: Piece, at: int, stop: int) -> KV:
        def made() -> KV:
            kv = self.names[piece.name]
            origin = piece.origin + at - piece.start
            kv = kv.slice(origin, origin + stop - at)
            if piece.model is None:
                return kv
            offset = self.engine.offsets.named(*piece.model).predict(kv)
            return kv + KV(offset.keys * piece.scale, offset.values * piece.scale)

        return await self.engine.call(made)

    async def publish(self, seq: LocalSequence, request: Request, *, answered: bool) -> list[str]:
        """Keep what gets a name, of the prompt or of the answer; returns the names."""
        state, published = seq.state, []
        for publish in request.publish:
            if (publish.stop is None) is not answered or publish.name in self.names:
                continue
            slots = range(publish.start, seq.length if publish.stop is None else publish.stop)
            if len(slots):
                self.names[publish.name] = await self.engine.call(
                    lambda slots=slots: state.position_free(slots)
                )
                published.append(publish.name)
        return published

    async def keep(
        self, seq: LocalSequence, ids: tuple[int, ...], request: Request, exact: bool
    ) -> None:
        """What the request leaves behind besides names."""
        state = seq.state
        if request.row and request.keep:
            kv = await self.engine.call(lambda: state.position_free(range(len(ids))))
            self.rows[request.row] = Kept(ids, kv)
        elif request.row:
            self.rows.pop(request.row, None)
        for lesson in request.lessons if exact else ():
            base = self.names.get(lesson.name)
            if base is None:
                continue
            size = lesson.stop - lesson.start
            known = Base(base.slice(lesson.origin, lesson.origin + size), range(size))

            def learn(lesson: Any = lesson, known: Base = known) -> int:
                model = self.engine.offsets.named(*lesson.model)
                truth = state.position_free(range(lesson.start, lesson.stop))
                realign.observe(model, truth, known)
                return model.samples

            self.told[lesson.model] = await self.engine.call(learn)
        for name in request.release:
            self.names.pop(name, None)
        for row in request.ends:
            self.rows.pop(row, None)

    async def reply(self, request: Request, at: int, missing: list[str], new: list[str]) -> Reply:
        """What is said of a request."""

        def says(model: tuple[str, str, str], kv: KV) -> tuple[bool, str, int, float]:
            found: Predictability = self.engine.offsets.named(*model).predictability(kv)
            return found.shareable, found.reason, found.samples, found.error

        answers = []
        for asked in request.questions:
            kv = self.names.get(asked.name)
            part = kv.slice(asked.origin, asked.origin + asked.tokens) if kv is not None else None
            answers.append(None if part is None else says(asked.model, part))
        models = {
            " ".join(model): says(model, next(iter(self.names.values())))
            for model in self.told
            if model[0] == "linear" and self.names
        }
        return Reply(
            supplied=(0, at),
            missing=tuple(missing),
            published=tuple(new),
            refused=self.refused,
            answers=tuple(answers),
            models=models,
            about={"version": "fake"} if request.query else None,
        )


async def answered(
    connector: FakeConnector,
    ids: tuple[int, ...],
    body: dict[str, Any],
    asked: Answer,
    emit: Any,
    pause_s: float = 0.0,
) -> tuple[int, dict[str, Any] | None, list[torch.Tensor]]:
    """Answer one request; returns what was supplied, the field of the reply, and the logits."""
    request = Request.from_json(body.get("kv_transfer_params")) or Request()
    connector.seen.append(request)
    messages = frozenset({"x"})
    options = ReuseOptions(bases="borrowed")
    capacity = len(ids) + asked.sampling.max_tokens
    spec = CallSpec("fake", PLAIN, capacity, reuse=options, messages=messages)
    seq = connector.engine.open(spec)
    try:
        salt = body.get("cache_salt", "")
        at, missing = await connector.fill(seq, ids, request, salt, asked)
        forced = (body.get("vllm_xargs") or {}).get("kvcomm_force", "")
        assert not forced
        new: list[str] = []
        begun = False
        async for token in seq.answer():
            if not begun:  # the prompt is computed
                begun, new = True, await connector.publish(seq, request, answered=False)
            emit(token)
            if pause_s:
                await asyncio.sleep(pause_s)
        record = seq.state.answering.record or [] if seq.state.answering else []
        new += await connector.publish(seq, request, answered=True)
        await connector.keep(seq, ids, request, exact=not at)
        reply = await connector.reply(request, at, missing, new)
        wanted = "kvcomm" in (body.get("kv_transfer_params") or {})
        return at, (reply.to_json() if wanted else None), list(record)
    finally:
        await asyncio.shield(seq.close())


def logprobs(body: dict[str, Any], record: list[torch.Tensor], tokens: list[Token]) -> Any:
    """The `logprobs` of a completion, by token id."""
    named = []
    for row in record[: len(tokens)]:
        values = row.double().log_softmax(-1)
        ids = body.get("logprob_token_ids") or values.topk(body["logprobs"]).indices.tolist()
        step = {f"token_id:{i}": float(values[i]) for i in ids}
        named.append({key: value for key, value in step.items() if math.isfinite(value)})
    return {"tokens": [f"token_id:{token.id}" for token in tokens], "top_logprobs": named}
