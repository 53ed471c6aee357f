"""The engine's thread: commands in, steps, events out.

Every turn handles the commands that have come, then computes one step. Everything that touches
sequences, caches and offset models happens here, so nothing of it has a lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from kvcomm.engine.base import BACKGROUND, READY, CallSpec, Phases
from kvcomm.engine.local.bases import MissingBase
from kvcomm.engine.local.commands import Command, Compare, Extend, Run, priority_of
from kvcomm.engine.local.lessons import Lessons
from kvcomm.engine.local.lookup import Lookup
from kvcomm.engine.local.memory import release_unused
from kvcomm.engine.local.reservations import Reservations
from kvcomm.engine.local.state import Prefill, SequenceState
from kvcomm.engine.local.steps import Steps, fail
from kvcomm.engine.segments import NO_ROOM
from kvcomm.errors import KvcommError, OutOfMemory, Preempted
from kvcomm.kv import KVBuffer
from kvcomm.prompt import Segment
from kvcomm.reuse.state import learned_by


@dataclass(frozen=True)
class Memory:
    """KV buffers on `device`: bytes of a slot, how one is made, and what gives room.

    `make` raises `OutOfMemory`. `trim` has caches give up what sequences need, and `relieve` all
    that only saves time.
    """

    slot_bytes: int
    make: Callable[[int], KVBuffer]
    trim: Callable[[], None]
    relieve: Callable[[], None]
    device: torch.device


class Core:
    """Handles the commands of one model's sequences."""

    def __init__(
        self,
        steps: Steps,
        lookup: Lookup,
        lessons: Lessons,
        admission: Reservations,
        memory: Memory,
    ) -> None:
        self.steps = steps
        self.lessons = lessons
        self._lookup = lookup
        self._bases = lookup.bases
        self._admission = admission
        self._memory = memory
        self._condition = threading.Condition()
        self._commands: deque[Command] = deque()
        self._late: list[Command] = []  # what waits until nobody more urgent does
        self._unadmitted: dict[SequenceState, Extend] = {}
        self._parked: list[Extend] = []  # until base KV is there
        self._closing: set[SequenceState] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kvcomm-engine", daemon=True)
        self._thread.start()

    # From other threads.

    def submit(self, command: Command) -> Future[Any]:
        """Queue a command. Raises `KvcommError` when the engine is closed."""
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            self._commands.append(command)
            self._condition.notify()
        return command.future

    def call(self, task: Callable[[], Any], priority: int = READY) -> Future[Any]:
        """Call `task` on the engine's thread, between steps."""
        return self.submit(Run(task, priority))

    @property
    def busy(self) -> bool:
        """Whether prompts are to be prefilled or learned from, but in the background.

        To be asked on the engine's thread: elsewhere it is not seen what is in hand.
        """
        if self.lessons:
            return True
        queued = [*self._commands, *self._late]
        return any(priority_of(command) < BACKGROUND for command in queued) or any(
            prompt.priority < BACKGROUND for prompt in list(self.steps.prompts)
        )

    def close(self) -> None:
        """Stop after the current step and fail everything that waits."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # On the engine's thread.

    def _work(self) -> None:
        with torch.inference_mode():
            while self._turn():
                pass
        error = KvcommError("the engine was closed while this call was running")
        waiting = [*self._commands, *self._late, *self._unadmitted.values(), *self._parked]
        for command in waiting:
            fail(command.future, error)
        self.steps.drop(list(self.steps.prompts), list(self.steps.answers), error)

    def _turn(self) -> bool:
        """Handle commands, and compute a step if there is one; False when the engine is closed.

        Its locals go with it: while the thread waits, it holds on to nobody's sequence.
        """
        with self._condition:
            if self._closed:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            if priority_of(command) == READY:
                self._handle(command)
            else:
                self._late.append(command)
        # One of these at a time: predicting and filling take as long as a step.
        ready = [command for command in self._late if self.steps.may(priority_of(command))]
        first = max if self.steps.overdue else min
        late = first(ready, key=priority_of, default=None)
        if late is not None:
            self._late.remove(late)
            self._handle(late)
        try:
            worked = self.steps.step(self._admission.calls)
        except Exception as error:  # a bug here must not leave its callers waiting
            self.steps.drop(list(self.steps.prompts), list(self.steps.answers), error)
            worked = True
        self._unpark()
        if self.lessons and self.steps.may(BACKGROUND):
            self.learn()
        elif not (worked or late or commands):
            with self._condition:
                if not (self._commands or self._closed):
                    self._condition.wait()
        return True

    def _handle(self, command: Command) -> None:
        if command.future.cancelled():
            return
        try:
            if isinstance(command, Extend):
                self._extend(command)
            elif isinstance(command, Compare):
                self._compare(command)
            elif command.future.set_running_or_notify_cancel():
                command.future.set_result(command.task())
        except BaseException as error:
            if command.future.running():
                command.future.set_exception(error)
            else:
                fail(command.future, error)

    def _extend(self, command: Extend) -> None:
        """Append segments to a sequence: when it has room, and its base KV is there."""
        seq = command.seq
        if seq.ended is not None:
            raise seq.ended
        if command.planning:
            self._prepare(command)
            return
        if seq.buffer is None:
            nbytes = self._memory.slot_bytes * seq.call.capacity
            if seq.priority == READY:
                self._unadmitted[seq] = command
                self._admission.reserve(seq, nbytes)
                self.admit()
            elif self._admission.try_reserve(seq, nbytes):
                self._begin(command)
            else:
                raise Preempted(f"there is no room yet for `{seq.call.node}`")
            return
        self._grow(command)
        self._prepare(command)

    def admit(self) -> None:
        """Let in who fits now; calls ahead and in the background give way if they must."""
        while self._admission.waiting and self.lessons:
            self.learn()
        while True:
            for seq in self._admission.admit():
                command = self._unadmitted.pop(seq)  # type: ignore[call-overload]
                try:
                    self._begin(command)
                except BaseException as error:
                    fail(command.future, error)
            victims = self._admission.victims()
            for victim in victims:
                why = f"`{victim.call.node}` gave way to a call that was ready"  # type: ignore[attr-defined]
                self.end(victim, Preempted(why))  # type: ignore[arg-type]
            if not victims:
                return

    def _begin(self, command: Extend) -> None:
        """A sequence has room: make its buffer."""
        seq = command.seq
        self._memory.trim()
        try:
            try:
                seq.buffer = self._memory.make(seq.call.capacity)
            except OutOfMemory:
                self._memory.relieve()
                seq.buffer = self._memory.make(seq.call.capacity)
        except BaseException as error:
            self._admission.release(seq)
            if isinstance(error, OutOfMemory) and seq.priority > READY:
                raise Preempted(str(error)) from None
            raise
        self._grow(command)
        self._prepare(command)

    def _grow(self, command: Extend) -> None:
        """Move a sequence into a larger buffer, if it has become longer than was known."""
        seq = command.seq
        needed = len(seq) + sum(len(segment.rest) for segment in command.segments)
        needed += seq.call.answer_tokens
        if needed <= seq.kv.capacity:
            return
        buffer = self._memory.make(needed)
        buffer.copy_from(seq.kv, 0, len(seq))
        self.steps.prefix.leave(seq.kv, keep=False)
        seq.buffer = buffer
        if seq.settled:
            settled, seq.settled = seq.settled, 0
            self.steps.settle(seq)
            seq.settled = settled
        self._admission.grow(seq, buffer.nbytes)

    def _prepare(self, command: Extend) -> None:
        """Have base KV made that is missing, and wait for it."""
        for wanted in self._bases.missing(command):
            self._make(wanted, command)
        if command.awaits:
            for entry in command.awaits:
                for prompt in self.steps.prompts:
                    if any(entry is claimed for claimed, _ in prompt.claims):
                        prompt.urgent |= command.seq.priority == READY
            self._parked.append(command)
        else:
            self._place(command)

    def _make(self, wanted: MissingBase, command: Extend) -> None:
        """Prefill a text, or a template's literals, for its base KV, while there is room."""
        call = CallSpec(
            command.seq.call.node,
            command.seq.call.template,
            len(wanted.ids),
            reuse=command.seq.call.reuse,
            namespace=command.seq.call.namespace,
        )
        seq = SequenceState(call, command.seq.rope, Phases(), READY)
        nbytes = self._memory.slot_bytes * len(wanted.ids)
        cache = self._bases.segments
        kept = self._memory.slot_bytes * sum(map(len, wanted.spans))
        if kept > cache.budget() or not self._admission.try_reserve(seq, nbytes):
            command.absent |= dict.fromkeys(wanted.keys, NO_ROOM)
            return
        self._memory.trim()
        try:
            seq.buffer = self._memory.make(len(wanted.ids))
        except OutOfMemory:
            self._admission.release(seq)
            command.absent |= dict.fromkeys(wanted.keys, NO_ROOM)
            return
        seq.ids += wanted.ids
        prompt = Prefill(seq, 0, adopts=len(wanted.ids) - 1)
        for key, span in zip(wanted.keys, wanted.spans, strict=True):
            entry = cache.claim(key, seq, 0)
            if entry is not None:
                prompt.claims.append((entry, span))
                command.awaits.append(entry)

        def done(future: Future[Any]) -> None:
            command.base_tokens += prompt.computed
            if wanted.shared and not future.exception():
                self.steps.prefix.insert(
                    seq.kv,
                    wanted.ids[: wanted.shared],
                    exact=True,
                    namespace=call.namespace,
                    shared=wanted.shared,
                )
            self.end(seq)

        prompt.future.add_done_callback(done)
        self.steps.queue(prompt)

    def _unpark(self) -> None:
        """Go on with what waited for base KV that is there now, or never will be."""
        if not self.steps.resolved:
            return
        self.steps.resolved = False
        parked, self._parked = self._parked, []
        for command in parked:
            if any(entry.pending is not None for entry in command.awaits):
                self._parked.append(command)
            elif not command.future.cancelled():
                self._place(command)

    def _place(self, command: Extend) -> None:
        seq = command.seq
        self.learn(learned_by(seq.call.template, seq.call.namespace))
        try:
            if seq.ended is not None:
                raise seq.ended
            if command.planning:
                plan = self._lookup.plan(command)
                if command.future.set_running_or_notify_cancel():
                    command.future.set_result(plan)
                return
            prompt = self._lookup.place(command)
            if command.answering is not None:
                seq.answering = command.answering
        except BaseException as error:
            fail(command.future, error)
        else:
            self.steps.queue(prompt)

    def _compare(self, command: Compare) -> None:
        """Queue a forward of dense's answer behind the sequence's prompt, for its logits."""
        seq, dense = command.seq, command.dense
        if seq.ended is not None:
            raise seq.ended
        assert dense.answering is not None
        assert dense.answering.record is not None
        record = dense.answering.record
        # The tokens that dense fed back; the final one was only sampled.
        fed = dense.ids[dense.prompt :][: len(record) - 1]
        prompt = Prefill(seq, seq.prompt, logits=len(fed) + 1, compare=torch.stack(record))
        prompt.future = command.future
        seq.ids[seq.prompt :] = fed
        # The prompt's last token once more, for its logits.
        prompt.slots = list(range(seq.prompt - 1, len(seq)))
        self.steps.queue(prompt)

    def finish(self, seq: SequenceState, segments: Sequence[Segment], offsets: str) -> None:
        """A sequence's message is out: settle it, and note what there is to learn from it."""
        self.steps.held.discard(seq)
        if seq.buffer is None or seq.ended is not None:
            return
        self.steps.settle(seq)
        self.lessons.add(seq, segments, offsets)

    def learn(self, stem: str = "") -> None:
        """Learn what is to be learned of a template, or the oldest lesson."""
        for seq in self.lessons.learn(stem):
            if seq in self._closing:
                self.end(seq)

    def end(self, seq: SequenceState, why: BaseException | None = None) -> None:
        """Give a sequence's memory back; KV that others may need is copied. Safe to call twice."""
        self.steps.held.discard(seq)
        if why is None and self.lessons.of(seq):
            self._closing.add(seq)
            return
        self._closing.discard(seq)
        if seq.ended is not None:
            return
        seq.ended = why or KvcommError("the sequence is closed")
        self.lessons.drop(seq)
        mine = [prompt for prompt in self.steps.prompts if prompt.seq is seq]
        self.steps.drop(mine, [seq] if seq in self.steps.answers else [], seq.ended)
        self._parked = [command for command in self._parked if not _failed(command, seq)]
        if command := self._unadmitted.pop(seq, None):
            fail(command.future, seq.ended)
        for entry in seq.views:
            self._bases.segments.detach(entry)
        seq.views, seq.placed = [], {}
        if seq.buffer is not None:
            self.steps.prefix.leave(seq.buffer)
            seq.buffer = None
            if seq.priority >= BACKGROUND:  # audits come in a row, and each leaves its holes
                release_unused(self._memory.device)
        self._admission.release(seq)
        self.admit()


def _failed(command: Extend, seq: SequenceState) -> bool:
    """Fail a command that is the sequence's."""
    if command.seq is not seq or seq.ended is None:
        return False
    fail(command.future, seq.ended)
    return True
