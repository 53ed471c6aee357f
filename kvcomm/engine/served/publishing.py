"""Sequences on a server with kvcomm's connector: what they compute is kept for others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from kvcomm.engine.base import Answer, CallSpec, Token
from kvcomm.engine.served.protocol import cached
from kvcomm.engine.served.sequence import ServedSequence
from kvcomm.engine.served.supply import (
    Model,
    Named,
    Supply,
    handle_of,
    new_name,
    pieces_of,
    published,
)
from kvcomm.kv import content_key
from kvcomm.message import Handle, Outgoing
from kvcomm.prompt import Segment
from kvcomm.vllm.protocol import OffsetLesson, Publish, Reply, Request

# How long a server may take to see that an answer has ended.
ENDS_S = 2.0


class PublishingSequence(ServedSequence):
    """A prompt that is computed; its inputs and its answer get names.

    See `kvcomm.engine.base.EngineSequence` for the contract.
    """

    def __init__(self, engine: Any, call: CallSpec) -> None:
        super().__init__(engine, call)
        self.supply: Supply = engine.supply
        self._lessons: list[OffsetLesson] = []
        self._message = ""
        self._inputs: list[str] = []
        self._computed: Future[None] = Future()  # the prompt is, or will not be

    def _ask(self, answer: Answer) -> None:
        self._params = self.supply.params(self._request(self._named()))
        super()._ask(answer)

    def _named(self) -> list[Publish]:
        """The answer's name, if others may want it."""
        if not self._call.reuse.publishes:
            return []
        self._message = new_name()
        return [Publish(self._message, self.length - len(self._call.template.begins), None)]

    def _request(self, publish: list[Publish]) -> Request:
        """What the connector is asked beside the answer."""
        inputs = published(self.supply, self._call, self._placed, self._computed)
        self._inputs = [publish.name for publish in inputs]
        return Request(publish=(*publish, *inputs), lessons=tuple(self._lessons))

    async def _answered(self, asked: Answer, emit: Callable[[Token], None]) -> int | None:
        def heard(token: Token) -> None:
            if not self._computed.done():
                self._computed.set_result(None)
            emit(token)

        try:
            return await super()._answered(asked, heard)
        finally:
            if not self._computed.done():
                self.supply.lost(self._inputs)
                self._computed.set_result(None)

    async def stop(self, kept: int) -> None:
        """The server ends at the same text by itself; only then the answer has its name."""
        if self._answering is not None and self._message:
            ended = asyncio.wrap_future(self._answering)
            await asyncio.wait([ended], timeout=ENDS_S)
        await super().stop(kept)

    async def _sent(
        self,
        ids: Sequence[int],
        request: Request,
        salt: str,
        tokens: int = 1,
        *,
        ahead: bool = False,
    ) -> tuple[Reply | None, int | None]:
        """Send a prompt for `tokens` that nobody reads; returns what came of it, and what the
        server had of the prompt. No reply: it was `ahead`, and others need the server.
        """
        engine = self._engine
        body = engine.body(ids, salt, max_tokens=tokens, min_tokens=tokens, temperature=0.0)
        answer = await engine.asked(lambda: body | self.supply.params(request), ahead=ahead)
        if answer is None:
            return None, None
        reply = Reply.from_json(answer.get("kv_transfer_params"))
        self.supply.heard(reply)
        return reply or Reply(refused="the server said nothing of its KV"), cached(answer)

    async def publish(self, message: Outgoing, readers: int) -> Handle | None:
        if not self._message:
            return None
        begin, spans = len(self._call.template.begins), []
        for span in message.spans:
            # The last token that was sampled was never computed.
            held = min(span.length, self._answered_tokens - 1 - span.source)
            if held > 0 and begin + span.source >= 0:
                spans.append((span.start, span.source, held))
        if not spans:
            return None
        key = content_key(self._engine.fingerprint, self._message, "message")
        places: list[int | None] = [None] * len(message.ids)
        for start, source, length in spans:
            places[start : start + length] = range(begin + source, begin + source + length)
        exact = self.exact
        named = Named(self._message, places, "message", self._call.node, exact, readers)
        self.supply.add(key, named)
        self._message = ""  # its readers let go of it
        return handle_of(key, named)

    async def close(self) -> None:
        await super().close()
        if self._message:  # nobody has heard of it
            self.supply.drop(self._message)
            self._message = ""

    async def finish(self, segments: Sequence[Segment] = (), offsets: str = "") -> None:
        """Teach what a computed prompt shows, in one more request: its prefix is there."""
        if not (segments and offsets and self.exact and self._call.reuse.reads_prefix):
            return
        if found := lessons_of(self.supply, self._call, segments, offsets):
            request, salt = Request(lessons=tuple(found)), self._engine.salt(self._call)
            self._engine.behind(self._sent(self._prompt, request, salt))


def lessons(begin: int, named: Named, model: Model, literal: str = "") -> Iterable[OffsetLesson]:
    """What a computed placeholder at `begin` teaches a model; `literal` names what is behind it."""
    pieces = pieces_of(named, begin, named.covered, None, 1.0)
    for piece in pieces:
        behind = literal if piece is pieces[-1] and len(named.covered) == len(named.places) else ""
        yield OffsetLesson(model, piece.name, piece.start, piece.stop, piece.origin, behind)


def lessons_of(
    supply: Supply, call: CallSpec, segments: Sequence[Segment], family: str
) -> list[OffsetLesson]:
    """What the segments of a computed prompt teach: those whose base KV is known."""
    found: list[OffsetLesson] = []
    start = 0
    for segment in segments:
        begin, start = start, start + len(segment)
        if segment.kind == "placeholder" and len(segment):
            named, _ = supply.of(call, segment, "borrowed")
            if named is not None and named.covered:
                model = supply.model(call, segment, family, "borrowed")
                found += lessons(begin, named, model)
    return found
