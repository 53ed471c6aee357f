"""What runs in a replica's process: an engine, and the tasks that the driver sends it.

Nothing here knows Ray: an actor is made of `ReplicaHost` in `ray.py`. A task is a coroutine
function that cloudpickle wrote down.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import torch

from kvcomm.engine.base import BACKGROUND
from kvcomm.engine.replicated import ABOUT, SessionHost
from kvcomm.errors import KvcommError, RunCancelled, UsageError
from kvcomm.kv.precision import place

# What was learned, by family, template and label: tensors on the CPU.
Statistics = dict[tuple[str, str, str], dict[str, torch.Tensor]]
Task = Callable[["ReplicaHost", Callable[[Any], None]], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class About:
    """A replica: `life` names this start of its process, `engine` holds the fields of `ABOUT`."""

    life: str
    engine: dict[str, Any]
    tokenizer: Any


@dataclass(frozen=True)
class TaskEnd:
    """The last item of a task: what it returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


class ReplicaHost(SessionHost):
    """A host that is alone in its process."""

    def __init__(self, load: Callable[[], Any]) -> None:
        super().__init__(load())
        self._cancelled: dict[str, asyncio.Future[None]] = {}
        self._life = secrets.token_hex(8)
        self._told: list[tuple[str, Any]] = []
        if self.engine.capabilities.reuse:
            self.engine.offsets.shared = True

    async def about(self) -> About:
        """What the driver has to know of the model."""
        found = {name: getattr(self.engine, name) for name in ABOUT}
        return About(self._life, found, self.engine.codec.tokenizer)

    async def run(
        self, name: str, life: str, task: bytes, *news: Statistics
    ) -> AsyncIterator[list[Any]]:
        """Learn the news, run a task, and yield what it emits as it comes, a `TaskEnd` last.

        Nothing, where it is meant for an earlier life.
        """
        if life != self._life:
            return
        items: asyncio.Queue[Any] = asyncio.Queue()

        async def work() -> Any:
            if news:
                await asyncio.shield(self._merge(*news))  # what counts as told has to arrive
            return await _read(task)(self, items.put_nowait)

        def end(done: asyncio.Task[Any]) -> None:
            error = RunCancelled() if done.cancelled() else done.exception()
            items.put_nowait(TaskEnd(error=_portable(error)) if error else TaskEnd(done.result()))

        running = asyncio.create_task(work())
        running.add_done_callback(end)
        self._cancellation(name).add_done_callback(lambda _: running.cancel())
        found: list[Any] = [None]
        while not isinstance(found[-1], TaskEnd):
            found = [await items.get()]
            while not items.empty():
                found.append(items.get_nowait())
            yield found
        del self._cancelled[name]

    async def cancel(self, name: str) -> None:
        """Cancel a task, which may be still on its way; its last items say what became of it."""
        self._cancellation(name).cancel()

    def _cancellation(self, name: str) -> asyncio.Future[None]:
        return self._cancelled.setdefault(name, asyncio.get_running_loop().create_future())

    def tell(self, name: str, item: Any) -> None:
        """Keep something for whoever hears this name in the driver, until it is taken."""
        self._told.append((name, item))

    async def take(self) -> tuple[Statistics, list[tuple[str, Any]]]:
        """What was observed here, and told, and not taken yet: between steps, model by model."""
        found = {}
        for key, model in list(self.engine.offsets.models.items()):
            if state := await self.engine.call(model.take, BACKGROUND):
                found[key] = {name: tensor.cpu() for name, tensor in state.items()}
        self.tell_audits()
        told, self._told = self._told, []
        return found, told

    async def _merge(self, statistics: Statistics) -> None:
        offsets, device = self.engine.offsets, self.engine.network.device

        def merge() -> None:
            for key, state in statistics.items():
                offsets.merge(key, {name: place(tensor, device) for name, tensor in state.items()})
            offsets.trim()

        await self.engine.call(merge)


def _read(pickled: bytes) -> Task:
    try:
        task: Task = pickle.loads(pickled)
    except Exception as error:
        raise UsageError(
            f"a replica cannot read what it was sent ({type(error).__name__}: {error}): modules "
            "with the functions of a graph have to be importable on every machine"
        ) from None
    return task


def _portable(error: BaseException) -> BaseException:
    """The error, or one that says the same and can be sent."""
    if isinstance(error, Exception) and not isinstance(error, KvcommError):
        error.add_note("on a replica:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return KvcommError(f"{type(error).__name__}: {error}")
    return error
