"""The engine's loop: one thread that packs what is due into one forward after another.

A step takes one token of every decoding row and chunks of the rows being extended, most urgent
first. Everything that touches rows, store or prefix cache runs on this thread, between steps.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from kvcomm.engine.attention import Lent, Pack, Part, packed_forward
from kvcomm.engine.base import AHEAD, BACKGROUND, READY, SAME_TEXT, Phases, Token
from kvcomm.engine.beginnings import Beginning, lent
from kvcomm.engine.clock import done_at
from kvcomm.engine.graphs import Graphs
from kvcomm.engine.memory import out_of_memory, release_unused
from kvcomm.engine.rows import Row
from kvcomm.engine.sampling import Sampler
from kvcomm.errors import KvcommError, OutOfMemory

T = TypeVar("T")
# Tokens of rows being extended in one step: enough to be efficient, and fewer beside decoding
# rows, whose next token waits for the step, and in background steps, for which anybody may wait.
STEP_TOKENS = 2048
STEP_TOKENS_DECODING = 256
SMALLEST_STEP = 16
# A step with as many tokens is efficient: further rows would only keep it from being over.
FULL_STEP = 256
# Background work waits until nothing else was computed for so long: between a producer's end and
# its reader's start there is a moment in which nothing is due, and a step cannot be interrupted.
PAUSE_S = 0.05
# Work ahead waits so long after a row ended, and where none decodes after it was queued: what
# follows from an answer's last token is work of several rows, and that of the reader who is ready
# may come a moment later.
HOLD_S = 0.01


@dataclass(eq=False)
class Work:
    """Positions of a row to compute; all other slots below them are filled.

    `begin` names the positions when the work's turn comes. `done` gets the logits of the last
    `logits` positions, on the loop's thread, before the future resolves and before any other work:
    what it starts is part of the next step. Of the beginning that it `takes` it need not compute
    what another row in the step `gives`; `took` hears the first slot behind that.
    """

    row: Row
    begin: Callable[[], Sequence[int]]
    priority: Callable[[], int]
    logits: int
    phases: Phases
    done: Callable[[torch.Tensor | None], None]
    takes: Beginning | None = None
    gives: Beginning | None = None
    took: Callable[[int], None] = lambda _: None
    lent: Lent | None = None
    future: Future[None] = field(default_factory=Future)
    order: int = 0
    queued: float = 0.0
    positions: Sequence[int] | None = None
    computed: int = 0
    cancelled: bool = False
    collected: list[torch.Tensor] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        """The work will never be done."""
        _fail(self.future, error)

    def wants(self, index: int) -> bool:
        """Whether the logits of the position at `index` are asked for."""
        assert self.positions is not None
        return index >= len(self.positions) - self.logits

    def finish(self) -> None:
        """Everything is computed."""
        logits = torch.cat(self.collected) if self.collected else None
        if self.future.set_running_or_notify_cancel():
            try:
                self.done(logits)
            except Exception as error:
                self.future.set_exception(error)
            else:
                self.future.set_result(None)


@dataclass(eq=False)
class Decoding:
    """A row that gets one token a step. `logits` are those of its last filled slot.

    What was sampled, or an error, is put into `told` on the event loop `running`. `record`, where
    there is one, gets the logits behind the first `SAME_TEXT` sampled tokens.
    """

    row: Row
    sampler: Sampler
    stop: frozenset[int]
    running: asyncio.AbstractEventLoop
    told: asyncio.Queue[Token | BaseException]
    phases: Phases
    priority: Callable[[], int] = lambda: READY
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    began: float = 0.0
    record: list[torch.Tensor] | None = None
    sampled: int = 0
    cancelled: bool = False


class Loop:
    """Runs packed forwards of one model on a thread of its own.

    When a forward runs out of memory, `relieve` is called to free some, and it is tried again with
    fewer tokens of rows being extended, once. `flash` says which attention is used,
    `graphs` play the steps of rows that decode alone.
    """

    def __init__(
        self,
        model: Any,
        relieve: Callable[[], None],
        *,
        flash: bool = False,
        graphs: Graphs | None = None,
    ) -> None:
        self._model = model
        self._flash = flash
        self._graphs = graphs
        self._relieve = relieve
        self._step_tokens = STEP_TOKENS
        self._condition = threading.Condition()
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._idle: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._works: list[Work] = []
        self._decodings: list[Decoding] = []
        self._orders = itertools.count()
        self._closed = False
        self.steps = 0
        self._ended = 0.0  # when a row gave its last token
        self._busy_until = 0.0  # when the last step ended that was not in the background
        self._thread = threading.Thread(target=self._run, name="kvcomm-engine", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], T], *, idle: bool = False) -> Future[T]:
        """Run `task` on the loop's thread before the next step.

        An `idle` task waits until no call is on its way to its first token.
        """
        future: Future[T] = Future()
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            (self._idle if idle else self._tasks).append((task, future))
            self._condition.notify()
        return future

    def compute(self, work: Work) -> Work:
        """Queue `work`."""
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            work.order, work.queued = next(self._orders), time.perf_counter()
            self._works.append(work)
            self._condition.notify()
        return work

    def decode(self, decoding: Decoding) -> None:
        """Start decoding."""
        with self._condition:
            if self._closed:
                raise KvcommError("the engine is closed")
            decoding.began = time.perf_counter()
            self._decodings.append(decoding)
            self._condition.notify()

    @property
    def extending(self) -> bool:
        """Whether rows wait to be extended, others than in the background."""
        return any(work.priority() < BACKGROUND for work in list(self._works))

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
            while self._turn():
                pass
        self._fail_all(KvcommError("the engine was closed while this call was running"))

    def _turn(self) -> bool:
        """Wait for something to do, and do it; False when the loop is closed.

        Its locals go with it: while the loop waits, it holds on to nobody's row.
        """
        with self._condition:
            while not (self._tasks or self._idle or self._works or self._decodings or self._closed):
                self._condition.wait()
            if self._closed:
                return False
            tasks = list(self._tasks)
            self._tasks.clear()
            if not tasks and self._idle and not self._hurried():
                tasks = [self._idle.popleft()]
        for task, future in tasks:
            _settle(task, future)
        if not tasks:
            try:
                self._step()
            except Exception as error:  # a bug here must not leave its callers waiting
                self._drop(list(self._works), list(self._decodings), error)
        return True

    def _hurried(self) -> bool:
        """Whether a call is on its way to its first token."""
        return any(w.priority() == READY and not w.cancelled for w in self._works)

    def _fail_all(self, error: BaseException) -> None:
        for _, future in [*self._tasks, *self._idle]:
            _fail(future, error)
        self._drop(self._works, self._decodings, error)

    def _drop(
        self, works: Sequence[Work], decodings: Sequence[Decoding], error: BaseException
    ) -> None:
        """Fail these rows and take them out of the loop."""
        for work in works:
            _fail(work.future, error)
        _tell([(decoding, error) for decoding in decodings])
        with self._condition:
            self._works = [w for w in self._works if w not in works]
            self._decodings = [d for d in self._decodings if d not in decodings]

    def _step(self) -> None:
        with self._condition:
            self._works = [w for w in self._works if not w.cancelled]
            self._decodings = [d for d in self._decodings if not d.cancelled]
            works = sorted(self._works, key=lambda w: (w.priority(), w.order))
            decodings = list(self._decodings)
            urgent = self._urgent()
        # Background work (audits) runs when there is nothing else to do.
        if urgent:
            works = [w for w in works if w.priority() < BACKGROUND]
            decodings = [d for d in decodings if d.priority() < BACKGROUND]
        elif (works or decodings) and self._pause():
            return
        held, works = works, self._ripe(works)
        due = self._sampled(decodings)
        works = self._ripe(works)  # a row may have ended just now
        budget = min(self._step_tokens, STEP_TOKENS if urgent and not due else STEP_TOKENS_DECODING)
        chunks = self._chunks(works, budget)
        if not due and not chunks:
            if not works and held:
                self._hold(held)
            return
        try:
            if not self._fits(due, chunks):
                # Outside of the handler, whose traceback holds on to the tensors of what failed.
                self._relieve()
                chunks = self._fewer(chunks)
                if not self._fits(due, chunks):
                    tokens = len(due) + sum(len(chunk) for _, chunk in chunks)
                    raise OutOfMemory(f"computing {tokens} tokens")
        except Exception as error:  # a failed step fails its own rows, never the engine
            self._drop([work for work, _ in chunks], due, error)
        if urgent:
            self._busy_until = time.perf_counter()

    def _pause(self) -> bool:
        """Wait with background work until it is in nobody's way; True to look again what is due."""
        left = self._busy_until + PAUSE_S - time.perf_counter()
        if left <= 0:
            return False
        with self._condition:
            # What came since this step began has told nobody who waits.
            if not (self._tasks or self._idle or self._closed or self._urgent()):
                self._condition.wait(left)
        return True

    def _ripe(self, works: Sequence[Work]) -> list[Work]:
        """Those that may begin: all but work ahead that has to wait for a moment."""
        now = time.perf_counter()
        return [w for w in works if w.priority() != AHEAD or self._begins(w) <= now]

    def _begins(self, work: Work) -> float:
        # While rows decode, only the end of one makes a reader ready.
        queued = 0.0 if self._decodings else work.queued
        return max(queued, self._ended) + HOLD_S

    def _hold(self, works: Sequence[Work]) -> None:
        """Wait until one of these may begin, or something else is to be done."""
        left = min(map(self._begins, works)) - time.perf_counter()
        with self._condition:
            # What came since this step began has told nobody who waits.
            due = any(d.priority() < BACKGROUND for d in self._decodings) or self._hurried()
            if left > 0 and not (self._tasks or self._idle or self._closed or due):
                self._condition.wait(left)

    def _urgent(self) -> bool:
        """Whether anything is due that is not in the background."""
        due = [w.priority for w in self._works] + [d.priority for d in self._decodings]
        return any(priority() < BACKGROUND for priority in due)

    def _fits(self, due: Sequence[Decoding], chunks: Sequence[tuple[Work, Sequence[int]]]) -> bool:
        """Compute this step; False when memory has run out, and nothing has happened then."""
        try:
            self._forward(due, chunks)
        except Exception as error:
            if out_of_memory(error):
                return False
            raise
        return True

    def _fewer(
        self, chunks: Sequence[tuple[Work, Sequence[int]]]
    ) -> list[tuple[Work, Sequence[int]]]:
        """The first half of these tokens; steps have no more from now on."""
        left = max(sum(len(chunk) for _, chunk in chunks) // 2, 1)
        self._step_tokens = min(self._step_tokens, max(left, SMALLEST_STEP))
        fewer = []
        for work, chunk in chunks:
            if left > 0:
                fewer.append((work, chunk[:left]))
                left -= len(chunk)
            elif work.lent is not None:  # who gave it is cut: it begins anew
                work.positions = work.lent = None
        return fewer

    def _sampled(self, decodings: Sequence[Decoding]) -> list[Decoding]:
        """Draw the next token of every row; returns the rows that need a forward for it.

        They are told together: who waits for several rows that end in one step finds all of them
        at their end.
        """
        told = [(d, token) for d in decodings if (token := self._sample(d))]
        _tell(told)
        ended = [decoding for decoding, token in told if token.last]
        if ended:
            self._ended = time.perf_counter()
        with self._condition:
            self._decodings = [d for d in self._decodings if d not in ended]
        return [decoding for decoding, token in told if not token.last]

    def _sample(self, decoding: Decoding) -> Token | None:
        """Draw the row's next token; None when that failed."""
        sampling = decoding.sampler.sampling
        try:
            token = decoding.sampler.draw(decoding.logits)
        except Exception as error:
            self._drop([], [decoding], error)
            return None
        decoding.sampled += 1
        if decoding.record is not None and len(decoding.record) < SAME_TEXT:
            decoding.record.append(decoding.logits.clone())
        now = time.perf_counter()
        if decoding.sampled == 1:
            decoding.phases.add("first token", now - decoding.began)
        if token in decoding.stop:
            return Token(token, now, "stop")
        if decoding.sampled >= sampling.max_tokens:
            return Token(token, now, "length")
        decoding.row.ids.append(token)
        return Token(token, now)

    def _chunks(self, works: Sequence[Work], budget: int) -> list[tuple[Work, Sequence[int]]]:
        """The most urgent positions within the budget; less urgent rows wait for urgent ones.

        Rows share a step while it is not full; after that the first to come is the first to go. An
        equal beginning of several rows is computed in the first of them.
        """
        chunks: list[tuple[Work, Sequence[int]]] = []
        urgent: int | None = None
        taken = 0
        for work in works:
            if taken >= min(budget, FULL_STEP):
                break
            if urgent is not None and work.priority() > urgent:
                break
            if work.positions is None:
                try:
                    work.positions = work.begin()
                except Exception as error:
                    self._drop([work], [], error)
                    continue
                _borrow(work, chunks)
            positions = work.positions[work.computed : work.computed + budget - taken]
            if positions:
                urgent = work.priority()
                chunks.append((work, positions))
                taken += len(positions)
            else:  # a prefix held all of it
                self._remove([work])
                work.finish()
        return chunks

    def _remove(self, works: Sequence[Work]) -> None:
        with self._condition:
            self._works = [work for work in self._works if work not in works]

    def _forward(
        self, due: Sequence[Decoding], chunks: Sequence[tuple[Work, Sequence[int]]]
    ) -> None:
        started = done_at(self._model.device)
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
        counts = []
        for work, chunk in chunks:
            parts.append(Part(work.row.slab, len(ids), chunk, work.lent))
            asked = [i for i in range(len(chunk)) if work.wants(work.computed + i)]
            wanted += [len(ids) + i for i in asked]
            counts.append(len(asked))
            ids += [work.row.ids[slot] for slot in chunk]
            positions += chunk

        def compute() -> torch.Tensor:
            pack = Pack(parts, self._flash)
            return packed_forward(self._model, ids, positions, wanted, pack)

        if self._graphs is not None and len(due) == 1 and not chunks:
            logits = self._graphs.step(due[0].row, compute)
        else:
            logits = compute()
        self.steps += 1
        if len(ids) > FULL_STEP and self._model.device.type == "cpu":
            release_unused(self._model.device)
        spent = done_at(self._model.device) - started
        for index, decoding in enumerate(due):
            decoding.logits = logits[index]
            decoding.phases.add("decode", spent)
        taken = len(due)
        for (work, chunk), count in zip(chunks, counts, strict=True):
            if count:
                work.collected.append(logits[taken : taken + count])
                taken += count
            work.computed += len(chunk)
            if work.lent is not None:
                work.took(work.lent.stop)
                work.lent = None
            work.phases.add("forward", spent)
        finished = [w for w, _ in chunks if w.computed == len(w.positions or ())]
        self._remove(finished)
        for work in finished:
            work.finish()


def _borrow(work: Work, chunks: Sequence[tuple[Work, Sequence[int]]]) -> None:
    """Take what these chunks compute of the work's beginning; its last position is its own."""
    if work.takes is None or not work.positions:
        return
    givers = [(w.row.slab, w.gives, chunk[-1] + 1) for w, chunk in chunks if w.gives is not None]
    work.lent = lent(work.takes, work.positions[0], work.positions[-1], givers)
    if work.lent is not None:
        work.positions = [slot for slot in work.positions if slot >= work.lent.stop]


def _tell(told: Sequence[tuple[Decoding, Token | BaseException]]) -> None:
    """Hand out what was sampled: to every event loop at once."""
    waiting: dict[asyncio.AbstractEventLoop, list[tuple[Decoding, Token | BaseException]]] = {}
    for decoding, item in told:
        waiting.setdefault(decoding.running, []).append((decoding, item))
    for running, items in waiting.items():
        post(running, partial(_hand_out, items))


def _hand_out(items: Sequence[tuple[Decoding, Token | BaseException]]) -> None:
    for decoding, item in items:
        decoding.told.put_nowait(item)


def post(running: asyncio.AbstractEventLoop, task: Callable[[], object]) -> None:
    """Have the event loop do something; one that has closed meanwhile listens no longer."""
    try:
        running.call_soon_threadsafe(task)
    except RuntimeError:
        if not running.is_closed():
            raise


def _fail(future: Future[Any], error: BaseException) -> None:
    """Fail a future whose waiter may have gone."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _settle(task: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
