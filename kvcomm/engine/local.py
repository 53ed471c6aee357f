"""The in-process engine: a transformers model, its rows, store, prefix cache and offsets."""

from __future__ import annotations

import asyncio
import atexit
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import torch

from kvcomm.engine.base import Call, Capabilities, EngineSequence, Learned
from kvcomm.engine.bases import Bases
from kvcomm.engine.budget import WHOLE, Budget
from kvcomm.engine.check import TOLERANCE, kv_shape, slot_bytes
from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.graphs import Graphs
from kvcomm.engine.loaded import LoadedEngine
from kvcomm.engine.loop import Loop, Work
from kvcomm.engine.memory import free_memory, out_of_memory, release_unused
from kvcomm.engine.room import Room
from kvcomm.engine.rows import Row
from kvcomm.engine.sequence import LocalSequence
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import OutOfMemory
from kvcomm.kv import KV, PrefixCache, Rope, Slab, Store
from kvcomm.kv.tiers import Disk, Host, Tier
from kvcomm.message import Handle
from kvcomm.reuse.offsets import FAMILIES, Offsets
from kvcomm.reuse.plan import Verdict
from kvcomm.reuse.state import belongs, check_folder, copy_state, learned_by, load_state, save_state

T = TypeVar("T")
# The most bytes that are spilled to disk.
DISK = 16 << 30


# A thread that computes while Python ends is torn out of native code, which aborts the program.
_running: WeakSet[LocalEngine] = WeakSet()


def close_all() -> None:
    """Close the engines that nobody has closed; called when the program ends."""
    for engine in list(_running):
        with suppress(Exception):
            engine.close()


atexit.register(close_all)


class LocalEngine(LoadedEngine):
    """Runs a model whose attention is `packed_attention`; made by `load_engine`.

    `memory` is the budget for all KV, in bytes: by default half of what is free once the model is
    loaded. What has to leave an accelerator goes to the host, as far as a quarter of its free
    memory takes it. `spill` is a folder for base KV that leaves memory. `flash` is what the
    self-check found of `flash_attention`.
    """

    def __init__(
        self,
        model: Any,
        codec: TokenizerCodec,
        rope: Rope,
        *,
        name: str,
        fingerprint: str,
        max_context: int,
        stop: frozenset[int],
        memory: int | None = None,
        spill: Path | None = None,
        flash: bool = False,
    ) -> None:
        super().__init__(
            model,
            codec,
            Capabilities(reuse=True, exact=True),
            name=name,
            fingerprint=fingerprint,
            max_context=max_context,
            stop=stop,
        )
        device = model.device
        self.budget = Budget(free_memory(device) // 2 if memory is None else memory)
        self.store = Store(
            self.budget.for_store,
            self._lower_tiers(device, spill),
            lambda: self.steps,
        )
        self.prefix = PrefixCache(self.budget.for_prefix, WHOLE)
        one = torch.zeros(kv_shape(self.config, 1), dtype=model.dtype, device=device)
        self.offsets = Offsets(dict(FAMILIES), self.budget.for_offsets, like=KV(one, one))
        self.room = Room(self.budget.for_rows)
        self.budget.rows = lambda: self.room.used
        self.budget.pinned = lambda: self.store.pinned
        self.budget.store = lambda: self.store.nbytes
        self.budget.offsets = lambda: self.offsets.nbytes
        self.budget.prefix = lambda: self.prefix.nbytes
        self.rope = rope.to(device)
        graphs = Graphs(model, TOLERANCE[model.dtype]) if flash else None
        self.loop = Loop(model, self.relieve, flash=flash, graphs=graphs)
        self.slot_bytes = slot_bytes(model.config, model.dtype)
        self.bases = Bases(self)
        # Versions of what is on disk, by folder and template.
        self._saved: dict[Path, dict[str, int]] = defaultdict(dict)
        _running.add(self)

    def _lower_tiers(self, device: torch.device, spill: Path | None) -> list[Tier]:
        tiers: list[Tier] = []
        if device.type != "cpu":
            limit = free_memory(torch.device("cpu")) // 4
            tiers.append(Host(lambda: limit, device))
        if spill is not None:
            tiers.append(Disk(spill / self.fingerprint, lambda: DISK, device))
        return tiers

    def trim(self) -> None:
        """Let caches give up what rows need; runs on the engine's thread."""
        self.store.trim()
        self.offsets.trim()
        self.prefix.trim()

    def relieve(self) -> None:
        """Memory has run out: let go of what only saves time; runs on the engine's thread."""
        self.prefix.clear()
        self.store.halve()
        release_unused(self.network.device)

    def new_slab(self, capacity: int) -> Slab:
        """An empty slab of `capacity` slots. Raises `OutOfMemory`."""
        try:
            return Slab(*kv_shape(self.config, capacity), self.network.dtype, self.network.device)
        except Exception as error:
            if out_of_memory(error):
                raise OutOfMemory(f"opening a row of {capacity:,} tokens") from None
            raise

    def new_row(self, capacity: int) -> Row:
        """An empty row of `capacity` slots."""
        return Row(self.new_slab(capacity), self.rope)

    def open(self, call: Call) -> EngineSequence:
        """A new sequence. Raises `ContextOverflow` when it cannot fit the model's context."""
        self.check(call)
        return LocalSequence(self, call)

    async def enter(self, call: Call) -> EngineSequence:
        """A new sequence, when there is room for its row."""
        self.check(call)
        ticket = await self.room.enter(self.slot_bytes * call.capacity)
        try:
            if self.budget.short:
                await self.call(self.trim)
            try:
                return LocalSequence(self, call, ticket)
            except OutOfMemory:
                await self.call(self.relieve)
                return LocalSequence(self, call, ticket)
        except BaseException:
            self.room.leave(ticket)
            raise

    def spare(self, call: Call) -> EngineSequence | None:
        """A new sequence that gives way when it must, or None when there is no room for it."""
        self.check(call)
        opened: list[LocalSequence] = []
        running = asyncio.get_running_loop()

        def give_way() -> None:
            for seq in opened:
                seq.give_way(running)

        # Nothing is allocated before there is room for it.
        nbytes = self.slot_bytes * call.capacity
        ticket = self.room.try_enter(nbytes, call.priority, give_way)
        if ticket is None:
            return None
        if self.budget.short:
            self.loop.submit(self.trim)
        try:
            seq = LocalSequence(self, call, ticket)
        except BaseException as error:
            self.room.leave(ticket)
            if isinstance(error, OutOfMemory):
                return None
            raise
        opened.append(seq)
        if ticket.leaving:  # asked before it was there to hear it
            seq.give_way(running)
        return seq

    async def call(self, task: Callable[[], T], *, idle: bool = False) -> T:
        """Run `task` on the engine's thread; `idle`: when no call waits for its first token."""
        return await asyncio.wrap_future(self.loop.submit(task, idle=idle))

    async def outlook(self, call: Call) -> dict[str, Verdict]:
        """What offset models say of the placeholders of a call's template, whatever their texts."""
        stem = learned_by(call.template, call.namespace)
        nothing = KV(*2 * [torch.empty(1, 1, 0, 1)])

        def ask() -> dict[str, Verdict]:
            return {
                name: self.offsets.of(
                    call.offsets, stem, name, number, read=call.borrowed(name)
                ).verdict(nothing)
                for number, name in enumerate(call.template.names)
            }

        return await self.call(ask)

    async def finish(self, work: Work) -> None:
        """Wait for `work`; a cancelled wait takes it out of the loop."""
        try:
            await asyncio.wrap_future(work.future)
        except asyncio.CancelledError:
            work.cancelled = True
            self.loop.wake()
            raise

    async def release(self, handle: Handle, use: int) -> None:
        """Undo the pin of a published or lent handle for the reader at step `use`."""
        self.store.unpin(handle.key, use)
        self.room.look()

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """Bytes of what the offset models of a family have learned in a namespace."""

        def count() -> int:
            return sum(
                model.nbytes
                for (family, template, _), model in self.offsets.models.items()
                if family == offsets and belongs(template, namespace)
            )

        return await self.call(count)

    async def load_state(self, folder: Path, namespace: str = "") -> Learned:
        """Read what a namespace has learned. Raises `StateError` for another model's folder."""
        return await self.call(lambda: self.read_state(folder, namespace))

    def read_state(self, folder: Path, namespace: str, *, again: bool = False) -> Learned:
        """`load_state`, or reading what is known `again`; runs on the engine's thread."""
        check_folder(folder, self.model, self.fingerprint)
        loaded = load_state(folder, self.offsets, self.network.device, namespace, again=again)
        for template in loaded.read:
            self._saved[folder][template] = self.offsets.versions.get(template, 0)
        reason = "read" if loaded.templates else "nothing saved yet"
        if loaded.refused:
            reason = "set aside: " + "; ".join(loaded.refused)
        return Learned(str(folder), loaded.templates, loaded.samples, reason)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what a namespace has learned and the folder does not hold; returns the bytes.

        It is copied between steps, and written on the caller's thread, which that blocks. Raises
        `StateError` for another model's folder.
        """
        saved = self._saved[folder]
        learned = await self.call(partial(copy_state, self.offsets, namespace, saved), idle=True)
        written = save_state(folder, self.model, self.fingerprint, learned)
        saved |= {template: version for template, (version, _) in learned.items()}
        return written

    async def quiet(self) -> None:
        """Wait until nothing is left to compute ahead or for a first token.

        Who follows a draft sees it change only when the event loop comes around, so the engine has
        to be found without work several times.
        """
        idle = 0
        while idle < 3:
            await asyncio.sleep(0.001)
            idle = 0 if self.loop.extending else idle + 1

    def plain(self) -> DenseEngine:
        """The same model behind `generate`, with transformers' own attention: to compare with.

        Not to be used while this engine computes.
        """
        return DenseEngine(
            self.network,
            self.codec,
            name=self.model,
            fingerprint=self.fingerprint,
            max_context=self.max_context,
            stop=self.stop,
            reason="plain transformers",
            attention="sdpa",
        )

    def forget(self, namespace: str | None = None) -> None:
        """Drop all KV and everything learned, as after a fresh load; or that of one namespace.

        Base KV of a namespace stays until the store needs its room: its address tells nobody whose
        it is.
        """

        def drop() -> None:
            if namespace is None:
                self.store.clear()
                self.offsets.models.clear()
                self.offsets.versions.clear()
            else:
                for template in {template for _, template, _ in self.offsets.models}:
                    if belongs(template, namespace):
                        self.offsets.forget(template)
            self.prefix.clear(namespace)

        self.loop.submit(drop).result()

    def close(self) -> None:
        """Save what was learned and stop the loop; sequences still open fail."""
        super().close()
        _running.discard(self)
        self.loop.close()
