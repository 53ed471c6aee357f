"""The in-process engine: a transformers model, its sequences, caches and offset models."""

from __future__ import annotations

import asyncio
import atexit
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import torch

from kvcomm.engine.base import (
    BACKGROUND,
    SAME_TEXT,
    Answer,
    CallSpec,
    Capabilities,
    Compared,
    LearnedState,
    ShadowEvaluation,
    Variant,
)
from kvcomm.engine.bounded import LoadedEngine
from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.local.bases import Bases
from kvcomm.engine.local.budget import WHOLE, Budget
from kvcomm.engine.local.check import TOLERANCE, kv_shape, slot_bytes
from kvcomm.engine.local.commands import Extend
from kvcomm.engine.local.core import Core, Memory
from kvcomm.engine.local.cuda_graphs import CudaGraphs
from kvcomm.engine.local.lessons import Lessons
from kvcomm.engine.local.lookup import Lookup
from kvcomm.engine.local.memory import free_memory, out_of_memory, release_unused
from kvcomm.engine.local.reservations import Reservations
from kvcomm.engine.local.runner import Runner
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.engine.local.state import Moment
from kvcomm.engine.local.steps import Steps
from kvcomm.engine.segments import SegmentCache
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import OutOfMemory
from kvcomm.kv import KV, KVBuffer, PrefixCache, Rope
from kvcomm.kv.tiers import Disk, HostMemory, Tier
from kvcomm.message import Handle
from kvcomm.prompt import Hole, Segment, compile_template
from kvcomm.reuse.offsets import FAMILIES, Offsets, labels_of
from kvcomm.reuse.plan import BaseKind, Plan, Predictability
from kvcomm.reuse.policy import SHADOW, Policy
from kvcomm.reuse.state import (
    Copied,
    belongs,
    check_folder,
    copy_state,
    learned_by,
    load_state,
    save_state,
)
from kvcomm.sampling import Sampling

T = TypeVar("T")
# The most of the segment cache that may wait for readers: no more is retained for audits.
RETAINED = 0.5

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
    memory takes it. What was read of texts is written to `kv_cache`, too. `flash` is what the
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
        kv_cache: Disk | None = None,
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
        self.rope = rope.to(device)
        self.budget = Budget(free_memory(device) // 2 if memory is None else memory)
        self.segments = SegmentCache(self.budget.for_segments, _lower_tiers(device, kv_cache))
        self.prefix = PrefixCache(self.budget.for_prefix, WHOLE)
        one = torch.zeros(kv_shape(self.config, 1), dtype=model.dtype, device=device)
        self.offsets = Offsets(dict(FAMILIES), self.budget.for_offsets, like=KV(one, one))
        self.admission = Reservations(self.budget.for_sequences)
        self.budget.sequences = lambda: self.admission.used
        self.budget.retained = lambda: self.segments.tiers.pinned
        self.budget.segments = lambda: self.segments.tiers.nbytes
        self.budget.offsets = lambda: self.offsets.nbytes
        self.budget.prefix = lambda: self.prefix.nbytes
        self.slot_bytes = slot_bytes(model.config, model.dtype)
        # What stands before a bare user text: it takes the attention sink of a base prefill. That
        # of any day: base KV is found again on the next one.
        header = compile_template(codec.undated, (), (Hole("text"),)).literals[0]
        graphs = CudaGraphs(model, TOLERANCE[model.dtype]) if flash else None
        self.runner = Runner(model, self._relieve, flash, graphs)
        self.texts = Bases(self.segments, fingerprint, header)
        self.lessons = Lessons(self.texts, self.offsets, device)
        self.core = Core(
            Steps(self.runner, self.prefix, self.segments),
            Lookup(self.texts, self.offsets, self.prefix, device),
            self.lessons,
            self.admission,
            Memory(self.slot_bytes, self._new_buffer, self._trim, self._relieve, device),
        )
        # Versions of what is on disk, by folder and template.
        self._saved: dict[Path, dict[str, int]] = defaultdict(dict)
        _running.add(self)

    def _trim(self) -> None:
        """Let caches give up what sequences need; runs on the engine's thread."""
        if self.budget.short:
            self.segments.tiers.trim()
            self.offsets.trim()
            self.prefix.trim()

    def _relieve(self) -> None:
        """Memory has run out: let go of what only saves time; runs on the engine's thread."""
        self.prefix.clear()
        self.segments.tiers.halve()
        release_unused(self.network.device)

    def _new_buffer(self, capacity: int) -> KVBuffer:
        """An empty buffer of `capacity` slots. Raises `OutOfMemory`."""
        try:
            shape = kv_shape(self.config, capacity)
            return KVBuffer(*shape, self.network.dtype, self.network.device)
        except Exception as error:
            if out_of_memory(error):
                raise OutOfMemory(f"opening a sequence of {capacity:,} tokens") from None
            raise

    def open(self, call: CallSpec) -> LocalSequence:
        """A new, empty sequence. Raises `ContextOverflow` when it cannot fit the context."""
        self.check(call)
        return LocalSequence(self, call)

    async def call(self, task: Callable[[], T], priority: int = 0) -> T:
        """Call `task` on the engine's thread when `priority` has its turn."""
        return await asyncio.wrap_future(self.core.call(task, priority))

    def retain(self, handle: Handle) -> bool:
        """One more reader of a message's KV; False where too much is retained already."""
        if self.segments.tiers.pinned > RETAINED * self.budget.for_segments():
            return False
        self.core.call(lambda: self.segments.retain(handle.key))
        return True

    def release(self, handle: Handle) -> None:
        """One reader of a message's KV has done with it."""

        def release() -> None:
            self.segments.release(handle.key)
            self.core.admit()

        self.core.call(release)

    def predictability(self, call: CallSpec, offsets: str) -> dict[str, Predictability]:
        """What a family of offset models says of a template's placeholders."""
        known = self.offsets.known.get(learned_by(call.template, call.namespace), {})
        blank = self.offsets.blank(offsets)
        labels = labels_of(offsets, call.template.names, call.messages)
        return {name: known.get((offsets, label), blank) for name, label in labels.items()}

    def bases(self, call: CallSpec, texts: Mapping[str, Sequence[int]]) -> Mapping[str, BaseKind]:
        """The kind of base KV that inputs have, by name, where they have any."""
        return self.texts.kinds(call.namespace, texts)

    async def evaluate(
        self,
        call: CallSpec,
        segments: Sequence[Segment],
        variants: Sequence[Variant],
        *,
        reference: Policy = SHADOW,
        learn: Sequence[str] = (),
        distinct: bool = True,
        tokens: int = SAME_TEXT,
    ) -> ShadowEvaluation:
        """Compute a prompt, answer it with `tokens`, greedily, and compare variants with that."""
        answer = Answer(Sampling(max_tokens=tokens), record=True)
        room = sum(map(len, segments)) + tokens
        call = replace(
            call,
            capacity=room,
            answer_tokens=tokens,
            reuse=replace(reference.options, reads_prefix=call.reuse.reads_prefix),
            shares=False,
            priority=BACKGROUND,
            continues=False,
            followed=False,
        )
        keys: list[object] = list(range(len(variants)))
        found: dict[object, Compared] = {}
        moments = [variant.at for variant in variants]
        if distinct:
            for number, variant in enumerate(variants):
                plan, moment = await self._plan(call, segments, variant)
                keys[number], moments[number] = (plan.segments, plan.chosen), variant.at or moment
                if plan.dense:
                    found[keys[number]] = Compared([], plan.decision, True, None, 0)
        compared, spent = [], 0
        # What variants realign from is known by now: the dense KV need not wait for them.
        early = distinct and not any(variant.measured for variant in variants)

        async def teach() -> None:
            for family in learn:
                await self.call(partial(self.lessons.teach, dense.state, family), BACKGROUND)

        async with AsyncExitStack() as stack:
            dense = self.open(call)
            stack.push_async_callback(dense.close)
            done = await dense.extend(segments, reference, last=answer)
            spent = sum(usage.computed for usage in done.segments)
            async for _ in dense.answer():
                spent += 1
            if early:
                await teach()
                await dense.close()
            for key, variant, at in zip(keys, variants, moments, strict=True):
                known = found.get(key)
                if known is None:
                    variant = replace(variant, at=at)
                    found[key] = await self._compared(call, segments, variant, dense)
                    compared.append(found[key])
                else:
                    compared.append(replace(known, tokens=0))
            if not early:
                await teach()
        return ShadowEvaluation(compared, spent)

    async def _plan(
        self, call: CallSpec, segments: Sequence[Segment], variant: Variant
    ) -> tuple[Plan, Moment]:
        """What a variant's policy would do, once the base KV that it asks for is there.

        And what it would realign from: the offset models and the base KV of now.
        """
        state = LocalSequence(self, _call_of(variant, call)).state
        command = Extend(state, segments, variant.policy, ends=True, planning=True)
        plan: Plan = await asyncio.wrap_future(self.core.submit(command))
        return plan, state.moment

    async def _compared(
        self,
        call: CallSpec,
        segments: Sequence[Segment],
        variant: Variant,
        dense: LocalSequence,
    ) -> Compared:
        """One variant, in a sequence of its own."""
        seq = self.open(_call_of(variant, call))
        try:
            done = await seq.extend(
                segments,
                variant.policy,
                ends=True,
                at=variant.at,
                measured=(dense, variant.measured) if variant.measured else None,
            )
            divergence = await seq.compare(dense)
        finally:
            await seq.close()
        tokens = done.query_tokens + sum(usage.computed for usage in done.segments)
        return Compared(done.segments, done.decision, done.dense, divergence, tokens)

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """Bytes of what the offset models of a family have learned in a namespace."""

        def count() -> int:
            return sum(
                model.nbytes
                for (family, template, _), model in self.offsets.models.items()
                if family == offsets and belongs(template, namespace)
            )

        return await self.call(count)

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """Read what a namespace has learned. Raises `StateError` for another model's folder."""

        def read() -> LearnedState:
            check_folder(folder, self.model, self.fingerprint)
            loaded = load_state(folder, self.offsets, self.network.device, namespace)
            for template in loaded.read:
                self._saved[folder][template] = self.offsets.versions.get(template, 0)
                self.offsets.publish(template)
            reason = "read" if loaded.templates else "nothing saved yet"
            if loaded.refused:
                reason = "set aside: " + "; ".join(loaded.refused)
            return LearnedState(str(folder), loaded.templates, loaded.samples, reason)

        return await self.call(read)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what a namespace has learned and the folder does not hold; returns the bytes.

        It is copied between steps, and written on the caller's thread, which that blocks. Raises
        `StateError` for another model's folder.
        """
        saved = self._saved[folder]

        def copy() -> dict[str, Copied]:
            while self.lessons:
                self.core.learn()
            return copy_state(self.offsets, namespace, saved)

        learned = await self.call(copy, BACKGROUND)
        written = save_state(folder, self.model, self.fingerprint, learned)
        saved |= {template: version for template, (version, _) in learned.items()}
        return written

    async def drain(self) -> None:
        """Wait until no prompt is left to prefill, but in the background.

        Who follows a message sees it change only when the event loop comes around, so the engine
        has to be found without work several times.
        """
        idle = 0
        while idle < 3:
            await asyncio.sleep(0.001)
            idle = 0 if await self.call(lambda: self.core.busy) else idle + 1

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

        Base KV of a namespace stays until its room is needed: its address tells nobody whose
        it is.
        """

        def drop() -> None:
            if namespace is None:
                self.segments.clear()
                self.offsets.models.clear()
                self.offsets.versions.clear()
                self.offsets.known.clear()
            else:
                for template in {template for _, template, _ in self.offsets.models}:
                    if belongs(template, namespace):
                        self.offsets.forget(template)
            self.prefix.clear(namespace)

        self.core.call(drop).result()

    def close(self) -> None:
        """Save what was learned and stop the thread; sequences still open fail."""
        super().close()
        _running.discard(self)
        self.core.close()
        if self.segments.tiers.disk is not None:
            self.segments.tiers.disk.close()


def _call_of(variant: Variant, call: CallSpec) -> CallSpec:
    """The call of a variant, as large as the dense one's `call`, in the background."""
    # What an exact prefix holds is no test of a level.
    options = replace(variant.policy.options, reads_prefix=False, feeds_prefix=False)
    return replace(
        variant.call or replace(call, reuse=options),
        capacity=call.capacity,
        answer_tokens=call.answer_tokens,
        priority=BACKGROUND,
    )


def _lower_tiers(device: torch.device, disk: Disk | None) -> list[Tier]:
    """Where KV goes that has to leave the device."""
    tiers: list[Tier] = []
    if device.type != "cpu":
        limit = free_memory(torch.device("cpu")) // 4
        tiers.append(HostMemory(lambda: limit, device))
    return [*tiers, disk] if disk is not None else tiers
