"""What a replica's offset models learned, as it gives it to others and takes it from them.

Everything goes model by model, each in a task of its own between steps: rows wait for one model at
most, and never before their first token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from kvcomm.engine.base import Learned
from kvcomm.engine.local import LocalEngine
from kvcomm.kv.precision import place
from kvcomm.reuse.offsets import OffsetModel

T = TypeVar("T")
# Family, template, label: what names a model. Its state, on the CPU.
Key = tuple[str, str, str]
State = dict[str, torch.Tensor]
Lessons = dict[Key, State]


class Learner:
    """The offset models of an engine, which observe for others too.

    `taught`: it knows what the others know. One that was started anew does not, says so with None,
    and takes no lessons but the whole: `adopt` and `read` replace what it knows, so doing either
    twice counts nothing twice.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self.taught = False
        self._engine = engine
        # A lesson whose sender gave up waiting is finished before the next is begun.
        self._lock = asyncio.Lock()
        engine.offsets.shared = True

    async def take(self) -> Lessons | None:
        """What was observed here and not taken yet."""
        async with self._lock:
            return await self._take() if self.taught else None

    async def merge(self, *lessons: Lessons) -> None:
        """Add what others observed."""
        async with self._lock:
            if self.taught:
                await self._merge(lessons)

    async def copy(self) -> tuple[Lessons, Lessons] | None:
        """Everything known here; and what of it was not taken yet, which counts as taken now."""
        known: Lessons = {}

        def copied(key: Key) -> State:
            model = self._model(key)
            if model.samples:
                known[key] = {name: t.to("cpu", copy=True) for name, t in model.state().items()}
            return _on_cpu(model.take())

        async with self._lock:
            if not self.taught:
                return None
            return known, await self._each(self._keys, copied)

    async def adopt(self, known: Lessons) -> Lessons:
        """Know this, and what was observed here, which is returned and counts as taken."""
        offsets = self._engine.offsets

        def replaced(key: Key) -> State:
            mine = self._model(key).take()
            model = offsets.models[key] = offsets.new(key[0])
            if known.get(key):
                model.load_state(self._on_device(known[key]))
            model.merge(mine)
            offsets.learned(key[1])
            return _on_cpu(mine)

        async with self._lock:
            observed = await self._each({*self._keys, *known}, replaced)
            await self._engine.call(offsets.trim)
            self.taught = True
            return observed

    async def read(self, folder: Path, namespace: str) -> tuple[Learned, Lessons]:
        """Know what a state folder says, and what was observed here, as `adopt` does.

        Raises `StateError` for another model's folder.
        """
        models = self._engine.offsets.models

        def replaced() -> tuple[Learned, Lessons]:
            before = dict(models)
            read = self._engine.read_state(folder, namespace, again=True)
            observed = {key: model.take() for key, model in before.items()}
            for key, mine in observed.items():
                if models.get(key, before[key]) is not before[key]:
                    models[key].merge(mine)
                    self._engine.offsets.learned(key[1])
            return read, {key: _on_cpu(mine) for key, mine in observed.items() if mine}

        async with self._lock:
            found = await self._engine.call(replaced)
            self.taught = True
            return found

    async def _take(self) -> Lessons:
        return await self._each(self._keys, lambda key: _on_cpu(self._model(key).take()))

    async def _merge(self, lessons: Iterable[Lessons]) -> None:
        def add(key: Key, state: State) -> None:
            self._model(key).merge(self._on_device(state))
            self._engine.offsets.learned(key[1])

        for lesson in lessons:
            for key, state in lesson.items():
                await self._between(partial(add, key, state))
        await self._engine.call(self._engine.offsets.trim)

    def _model(self, key: Key) -> OffsetModel:
        """The model, without counting as asked: who is forgotten first stays as it is."""
        offsets = self._engine.offsets
        if key not in offsets.models:
            offsets.models[key] = offsets.new(key[0])
        return offsets.models[key]

    @property
    def _keys(self) -> list[Key]:
        return list(self._engine.offsets.models)

    async def _each(self, keys: Iterable[Key], task: Callable[[Key], State]) -> Lessons:
        """What `task` returns for every model, where it is anything."""
        found = {key: await self._between(partial(task, key)) for key in keys}
        return {key: state for key, state in found.items() if state}

    async def _between(self, task: Callable[[], T]) -> T:
        return await self._engine.call(task, idle=True)

    def _on_device(self, state: State) -> State:
        device = self._engine.network.device
        return {name: place(tensor, device) for name, tensor in state.items()}


def _on_cpu(state: State) -> State:
    return {name: tensor.cpu() for name, tensor in state.items()}
