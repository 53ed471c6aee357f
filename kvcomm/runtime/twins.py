"""Twins of an asynchronous method: one that streams, and those for callers that wait."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from kvcomm.background import NOTICE_S, Background
from kvcomm.errors import RunCancelled
from kvcomm.runtime.stream_events import StreamEvent

P = ParamSpec("P")
T = TypeVar("T")
Put = Callable[[StreamEvent], None]
# Who takes what the run that begins here streams.
LISTENER: ContextVar[Put | None] = ContextVar("kvcomm_stream", default=None)


class _Looped(Protocol):
    def _loop(self) -> Background: ...


S = TypeVar("S", bound=_Looped)


def streams(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], AsyncGenerator[StreamEvent | T, None]]:
    """The method that yields what runs in `method` stream, and last what it returns."""

    @wraps(method)
    async def twin(
        self: S, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[StreamEvent | T, None]:
        items: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        context = copy_context()
        context.run(LISTENER.set, items.put_nowait)
        running = asyncio.create_task(method(self, *args, **kwargs), context=context)
        running.add_done_callback(lambda _: items.put_nowait(None))
        try:
            while (item := await items.get()) is not None:
                yield item
            yield await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return twin


def waits(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], T]:
    """The method that returns what `method` does. Raises `RunCancelled` when it is cancelled."""

    @wraps(method)
    def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._loop().run(method(self, *args, **kwargs))
        except CancelledError:
            raise RunCancelled from None

    return twin


def steps(
    method: Callable[Concatenate[S, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[S, P], Iterator[T]]:
    """The method that yields what `method` does; left early, it waits until that is over."""

    @wraps(method)
    def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items: queue.Queue[T | BaseException | None] = queue.Queue()

        async def produce() -> None:
            try:
                async with aclosing(method(self, *args, **kwargs)) as found:
                    async for item in found:
                        items.put(item)
                items.put(None)
            except BaseException as error:
                items.put(error)

        background, running = self._loop(), produce()
        background.start(running)
        try:
            while True:
                try:
                    item = items.get(timeout=NOTICE_S)
                except queue.Empty:
                    continue
                if item is None:
                    return
                if isinstance(item, asyncio.CancelledError):
                    raise RunCancelled
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            background.cancel(running)

    return twin
