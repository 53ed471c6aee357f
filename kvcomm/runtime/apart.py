"""Code of the user's: functions run beside the event loop, coroutines on it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


async def called(function: Callable[..., T | Awaitable[T]], *args: Any) -> T:
    """`function(*args)`, whatever kind of function it is.

    A coroutine function runs on the event loop, and is cancelled with its caller. Any other runs in
    a thread; where it returns an awaitable, that is awaited on the loop.
    """
    if inspect.iscoroutinefunction(function):
        return await _awaited(function(*args))
    found = await apart(function, *args)
    return await _awaited(found) if inspect.isawaitable(found) else found


async def _awaited(found: Awaitable[T]) -> T:
    """What comes of `found`; whatever it raises, the loop and the run go on."""
    try:
        return await found
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("CancelledError: it was cancelled from inside") from None
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


async def apart(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a thread of its own.

    Nobody can stop a thread that hangs: a caller that is cancelled leaves it behind, and it does
    not keep the program from ending.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from now on nobody cancels it

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            # A future cannot carry StopIteration, and SystemExit in a tool ends no program.
            if isinstance(error, StopIteration) or not isinstance(error, Exception):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            future.set_exception(error)

    threading.Thread(target=work, name="kvcomm-apart", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(_left)
        raise


def _left(future: Future[Any]) -> None:
    """Nobody will await what a function returned whose caller has gone."""
    if future.exception() is None and inspect.iscoroutine(future.result()):
        future.result().close()
