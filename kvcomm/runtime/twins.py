"""Synchronous twins of asynchronous methods, on a background event loop that their object has."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import aclosing
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from kvcomm.background import NOTICE_S, Background
from kvcomm.errors import RunCancelled

P = ParamSpec("P")
T = TypeVar("T")


class _Looped(Protocol):
    def _loop(self) -> Background: ...


S = TypeVar("S", bound=_Looped)


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
        items: queue.Queue[tuple[T] | BaseException | None] = queue.Queue()

        async def produce() -> None:
            try:
                async with aclosing(method(self, *args, **kwargs)) as found:
                    async for item in found:
                        items.put((item,))
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
                yield item[0]
        finally:
            background.cancel(running)

    return twin
