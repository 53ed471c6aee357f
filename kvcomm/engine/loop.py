"""The engine's loop: one thread that packs what is due into one forward after another.

A step takes one token of every decoding row and chunks of the rows being extended, most urgent
first. Everything that touches rows, store or prefix cache runs on this thread, between steps.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from kvcomm.engine.attention import Pack, Part, packed_forward
from kvcomm.engine.base import Phases, Token
from kvcomm.engine.rows import Row
from kvcomm.engine.sampling import Sampler
from kvcomm.errors import KvcommError

T = TypeVar("T")
# Tokens of rows being extended in one step: enough to be efficient, and fewer beside decoding
# rows, whose next token waits for the step.
STEP_TOKENS = 2048
STEP_TOKENS_DECODING = 256


@dataclass(eq=False)
class Work:
    """Positions of a row that have to be computed; all other slots below them are filled."""

    row: Row
    positions: Sequence[int]
    priority: Callable[[], int]
    logits: bool
    phases: Phases
    order: int
    future: Future[torch.Tensor | None] = field(default_factory=Future)
    done: int = 0
    cancelled: bool = False


@dataclass(eq=False)
class Decoding:
    """A row that gets one token a step. `logits` are those of its last filled slot."""

    row: Row
    sampler: Sampler
    stop: frozenset[int]
    logits: torch.Tensor
    emit: Callable[[Token | BaseException], None]
    phases: Phases
    sampled: int = 0
    cancelled: bool = False


class Loop:
    """Runs packed forwards of one model on a thread of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._condition = threading.Condition()
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._works: list[Work] = []
        self._decodings: list[Decoding] = []
        self._orders = itertools.count()
        self._closed = False
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="kvcomm-engine", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Run `task` on the loop's thread, before the next step."""
        future: Future[T] = Future()
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            self._tasks.append((task, future))
            self._condition.notify()
        return future

    def compute(
        self,
        row: Row,
        positions: Sequence[int],
        *,
        priority: Callable[[], int],
        logits: bool,
        phases: Phases,
    ) -> Work:
        """Compute `positions` of `row`; the future's result are the last one's logits, if asked."""
        work = Work(row, positions, priority, logits, phases, next(self._orders))
        if not positions:
            work.future.set_result(None)
            return work
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            self._works.append(work)
            self._condition.notify()
        return work

    def decode(self, decoding: Decoding) -> None:
        """Start decoding; its `emit` is called on the loop's thread for every token."""
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            self._decodings.append(decoding)
            self._condition.notify()

    def wake(self) -> None:
        """Look again at what is due (after a cancellation or a change of priority)."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """Stop after the current step and fail everything that waits."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._condition:
                    while not (self._tasks or self._works or self._decodings or self._closed):
                        self._condition.wait()
                    if self._closed:
                        break
                    tasks = list(self._tasks)
                    self._tasks.clear()
                for task, future in tasks:
                    _settle(task, future)
                if not tasks:
                    self._step()
        self._fail_all(KvcommError("the engine was closed while this call was running"))

    def _fail_all(self, error: BaseException) -> None:
        for _, future in self._tasks:
            future.set_exception(error)
        self._fail(self._works, self._decodings, error)

    def _fail(
        self, works: Sequence[Work], decodings: Sequence[Decoding], error: BaseException
    ) -> None:
        for work in list(works):
            if not work.future.cancelled():
                work.future.set_exception(error)
        for decoding in list(decodings):
            decoding.emit(error)
        with self._condition:
            self._works = [w for w in self._works if w not in works]
            self._decodings = [d for d in self._decodings if d not in decodings]

    def _step(self) -> None:
        with self._condition:
            self._works = [w for w in self._works if not w.cancelled]
            self._decodings = [d for d in self._decodings if not d.cancelled]
            works = sorted(self._works, key=lambda w: (w.priority(), w.order))
            decodings = list(self._decodings)
        due = [d for d in decodings if self._sample(d)]
        chunks = self._chunks(works, STEP_TOKENS_DECODING if due else STEP_TOKENS)
        if not due and not chunks:
            return
        try:
            self._forward(due, chunks)
        except Exception as error:  # a failed step fails its own rows, never the engine
            self._fail([work for work, _ in chunks], due, error)

    def _sample(self, decoding: Decoding) -> bool:
        """Draw the row's next token; True when the row goes on and needs a forward for it."""
        sampling = decoding.sampler.sampling
        try:
            token = decoding.sampler.draw(decoding.logits)
        except Exception as error:
            self._fail([], [decoding], error)
            return False
        decoding.sampled += 1
        now = time.perf_counter()
        if token in decoding.stop:
            decoding.emit(Token(token, now, "stop"))
        elif decoding.sampled >= sampling.max_tokens:
            decoding.emit(Token(token, now, "length"))
        else:
            decoding.row.ids.append(token)
            decoding.emit(Token(token, now))
            return True
        with self._condition:
            self._decodings.remove(decoding)
        return False

    @staticmethod
    def _chunks(works: Sequence[Work], budget: int) -> list[tuple[Work, Sequence[int]]]:
        """The most urgent positions within the budget; less urgent rows wait for urgent ones."""
        chunks: list[tuple[Work, Sequence[int]]] = []
        urgent = works[0].priority() if works else 0
        for work in works:
            if budget <= 0 or work.priority() > urgent:
                break
            positions = work.positions[work.done : work.done + budget]
            chunks.append((work, positions))
            budget -= len(positions)
        return chunks

    def _forward(
        self, due: Sequence[Decoding], chunks: Sequence[tuple[Work, Sequence[int]]]
    ) -> None:
        started = time.perf_counter()
        parts: list[Part] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for decoding in due:
            slot = len(decoding.row.ids) - 1
            parts.append(Part(decoding.row.slab, len(ids), range(slot, slot + 1)))
            wanted.append(len(ids))
            ids.append(decoding.row.ids[slot])
            positions.append(slot)
        for work, chunk in chunks:
            parts.append(Part(work.row.slab, len(ids), chunk))
            ids += [work.row.ids[slot] for slot in chunk]
            positions += chunk
            if work.logits and work.done + len(chunk) == len(work.positions):
                wanted.append(len(ids) - 1)
        logits = packed_forward(self._model, ids, positions, wanted, Pack(parts))
        self.steps += 1
        spent = time.perf_counter() - started
        for index, decoding in enumerate(due):
            decoding.logits = logits[index]
            decoding.phases.add("decode", spent)
        taken = len(due)
        finished: list[tuple[Work, torch.Tensor | None]] = []
        for work, chunk in chunks:
            work.done += len(chunk)
            work.phases.add("forward", spent)
            if work.done == len(work.positions):
                finished.append((work, logits[taken] if work.logits else None))
                taken += work.logits
        with self._condition:
            done = {id(work) for work, _ in finished}
            self._works = [w for w in self._works if id(w) not in done]
        for work, row_logits in finished:
            if work.future.set_running_or_notify_cancel():
                work.future.set_result(row_logits)


def _settle(task: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
