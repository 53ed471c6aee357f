"""Code of the user's: functions run beside the event loop, coroutines on it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
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
    running = asyncio.get_running_loop()
    future: asyncio.Future[T] = running.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # the caller has gone
            if inspect.iscoroutine(result):
                result.close()  # nobody will await it
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function(*args)
        except StopIteration as error:  # a future cannot carry it
            failure = RuntimeError(f"StopIteration: {error}")
        except Exception as error:
            failure = error
        except BaseException as error:  # SystemExit in a tool is no reason to end the program
            failure = RuntimeError(f"{type(error).__name__}: {error}")
        try:
            running.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return

    threading.Thread(target=work, name="kvcomm-apart", daemon=True).start()
    return await future
