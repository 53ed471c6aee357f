"""Code of the user's, run beside the event loop, which it must not hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def apart(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a thread of its own.

    Nobody can stop a thread that hangs: a caller that is cancelled leaves it behind, and it does
    not keep the program from ending.
    """
    running = asyncio.get_running_loop()
    future: asyncio.Future[T] = running.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # the caller has gone
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
