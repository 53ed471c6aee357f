"""The engine of last resort: models whose KV cannot be reused run dense, by `generate`.

Segments are only collected; the whole prompt is prefilled when decoding begins. Slow and right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from transformers.generation.streamers import BaseStreamer

from kvcomm.engine.base import Answer, CallSpec, Capabilities, Token
from kvcomm.engine.bounded import LoadedEngine
from kvcomm.engine.clock import done_at
from kvcomm.engine.collected import CollectedSequence, WithoutKV
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import KvcommError


class DenseEngine(WithoutKV, LoadedEngine):
    """Runs any causal transformers model, one call at a time, without reuse.

    `attention` is the implementation to run with, where the model is set to another one.
    """

    def __init__(
        self,
        model: Any,
        codec: TokenizerCodec,
        *,
        reason: str,
        attention: str | None = None,
        **named: Any,
    ) -> None:
        able = Capabilities(reuse=False, exact=False, reason=reason)
        super().__init__(model, codec, able, **named)
        self.attention = attention
        # One thread: `generate` draws from the global random state, which each call seeds.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="kvcomm-dense")

    def open(self, call: CallSpec) -> DenseSequence:
        self.check(call)
        return DenseSequence(self, call)

    def close(self) -> None:
        self.worker.shutdown(cancel_futures=True)


class DenseSequence(CollectedSequence):
    """Collects a prompt, then generates; see `kvcomm.engine.base.EngineSequence`."""

    _engine: DenseEngine

    def __init__(self, engine: DenseEngine, call: CallSpec) -> None:
        super().__init__(engine, call)
        self._closed = False

    async def answer(self) -> AsyncGenerator[Token, None]:
        """Generate with transformers, token by token as they come."""
        assert self._answer is not None
        answer = self._answer
        running = asyncio.get_running_loop()
        queue: asyncio.Queue[Token | BaseException] = asyncio.Queue()

        def emit(item: Token | BaseException) -> None:
            if self._closed:
                raise KvcommError("the call was cancelled")
            running.call_soon_threadsafe(queue.put_nowait, item)

        future = running.run_in_executor(self._engine.worker, lambda: self._generate(answer, emit))
        try:
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.last:
                    break
            await future
        finally:
            self._closed = True

    @torch.inference_mode()
    def _generate(self, answer: Answer, emit: Callable[[Token | BaseException], None]) -> None:
        engine, sampling = self._engine, answer.sampling
        stop = engine.stop | frozenset(sampling.stop_token_ids)
        device = engine.network.device
        started, own = done_at(device), engine.config._attn_implementation
        try:
            torch.manual_seed(answer.seed)
            ids = torch.tensor([self._ids], device=device)
            greedy = sampling.temperature == 0
            self._set(engine.attention)
            engine.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.max_tokens,
                do_sample=not greedy,
                temperature=None if greedy else sampling.temperature,
                top_p=None if greedy else sampling.top_p,
                top_k=None,
                eos_token_id=sorted(stop) or None,
                pad_token_id=min(stop, default=0),
                streamer=_Emitter(stop, sampling.max_tokens, emit),
            )
        except BaseException as error:
            if not self._closed:
                emit(error)
        finally:
            self._set(own if engine.attention else None)
        self.phases.add("forward", done_at(device) - started)

    def _set(self, attention: str | None) -> None:
        if attention is not None:
            self._engine.network.set_attn_implementation(attention)

    async def close(self) -> None:
        self._closed = True


class _Emitter(BaseStreamer):  # type: ignore[misc]
    """Turns `generate`'s stream into tokens."""

    def __init__(
        self, stop: frozenset[int], limit: int, emit: Callable[[Token | BaseException], None]
    ) -> None:
        self._stop, self._limit, self._emit = stop, limit, emit
        self._seen = -1  # the first call brings the prompt

    def put(self, value: torch.Tensor) -> None:
        self._seen += 1
        if self._seen:
            token = int(value.reshape(-1)[0])
            at_limit: Literal["length"] | None = "length" if self._seen >= self._limit else None
            last = "stop" if token in self._stop else at_limit
            self._emit(Token(token, time.perf_counter(), last))

    def end(self) -> None:
        pass
