"""A replica's loop: one packed forward after another, by the engine's rules."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import simpy

from kvcomm.plan.hardware import Hardware
from kvcomm.plan.memory import BLOCK, Memory

# As in the engine (which cannot be imported here: it needs torch); a test compares them.
READY, AHEAD, BACKGROUND = 0, 1, 2
STEP_TOKENS, STEP_TOKENS_DECODING, FULL_STEP = 2048, 256, 256

Waiting = Generator[simpy.Event, Any, Any]


@dataclass(eq=False)
class Row:
    """A prompt on its way in: `length` slots are filled, or will be when what is queued is done.

    `key` names graph and node, which is what prefixes are found by.
    """

    key: tuple[int, str]
    capacity: int
    priority: int
    length: int = 0
    opening: int = 0


@dataclass(eq=False)
class Work:
    """Slots `start` to `end` of a row, of which `tokens` are computed when their turn comes.

    With `adopts`, a prefix may hold some of them, or another row in the step may compute them.
    `done` is called on the loop's turn, `finished` wakes who waits.
    """

    row: Row
    start: int
    end: int
    tokens: int
    finished: simpy.Event
    adopts: bool = False
    answers: bool = False
    done: Callable[[], None] = lambda: None
    order: int = 0
    prefix: int = 0
    computed: int = 0
    begun: bool = False

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return self.tokens - self.computed

    def context(self, count: int) -> float:
        """The mean number of slots before the next `count` tokens."""
        start = self.start + self.prefix
        return start + (self.end - start) * (self.computed + count / 2) / max(self.tokens, 1)


@dataclass(eq=False)
class Decoding:
    """A row that gets a token a step, `left` of them; `emit` is called as each is sampled."""

    row: Row
    left: int
    emit: Callable[[], None]


class Replica:
    """One copy of the model. `busy` are its seconds in forwards, `computed` its prompt tokens.

    `runtime` is the one thread that drives all its rows: one call after another gets to the loop.
    """

    def __init__(self, env: simpy.Environment, hardware: Hardware, memory: Memory) -> None:
        self._env = env
        self._hardware = hardware
        self.memory = memory
        self.runtime = simpy.Resource(env)
        self._works: list[Work] = []
        self._decodings: list[Decoding] = []
        self._tasks: deque[tuple[float, simpy.Event]] = deque()
        self._orders = itertools.count()
        self._wake = env.event()
        self.busy = 0.0
        self.computed = 0
        env.process(self._run())

    def compute(self, work: Work) -> simpy.Event:
        """Queue `work`; the event says that it is done."""
        work.order = next(self._orders)
        self._works.append(work)
        self._notify()
        return work.finished

    def spend(self, seconds: float) -> simpy.Event:
        """Keep the loop's thread for so long before its next step."""
        done = self._env.event()
        self._tasks.append((seconds, done))
        self._notify()
        return done

    def decode(self, decoding: Decoding) -> None:
        """Start decoding."""
        self._decodings.append(decoding)
        self._notify()

    def cancel(self, row: Row) -> None:
        """The row is gone."""
        self._works = [work for work in self._works if work.row is not row]

    def _notify(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Waiting:
        while True:
            if not (self._tasks or self._works or self._decodings):
                self._wake = self._env.event()
                yield self._wake
            elif self._tasks:
                seconds, done = self._tasks.popleft()
                yield self._pass(seconds)
                done.succeed()
            else:
                yield from self._step()

    def _pass(self, seconds: float) -> simpy.Event:
        self.busy += seconds
        return self._env.timeout(seconds)

    def _step(self) -> Waiting:
        works = sorted(self._works, key=lambda work: (work.row.priority, work.order))
        urgent = self._decodings or any(work.row.priority < BACKGROUND for work in works)
        if urgent:
            works = [work for work in works if work.row.priority < BACKGROUND]
        due = [decoding for decoding in list(self._decodings) if self._sample(decoding)]
        chunks = self._chunks(works, STEP_TOKENS if urgent and not due else STEP_TOKENS_DECODING)
        if not due and not chunks:
            return
        contexts = [float(decoding.row.length) for decoding in due]
        parts = [(work.context(count), count) for work, count in chunks]
        yield self._pass(self._hardware.forward_s(contexts, parts))
        for decoding in due:
            decoding.row.length += 1
        for work, count in chunks:
            work.computed += count
            self.computed += count
            if not work.left and work in self._works:
                self._finish(work)

    def _sample(self, decoding: Decoding) -> bool:
        """Draw a token; True when the row needs a forward for another one."""
        decoding.left -= 1
        if not decoding.left:
            self._decodings.remove(decoding)
        decoding.emit()
        return decoding.left > 0

    def _chunks(self, works: list[Work], budget: int) -> list[tuple[Work, int]]:
        """The most urgent tokens within the budget; less urgent rows wait for urgent ones.

        Rows share a step while it is not full. An equal beginning is computed in the first of them.
        """
        chunks: list[tuple[Work, int]] = []
        taken = 0
        for work in works:
            if taken >= min(budget, FULL_STEP):
                break
            if chunks and work.row.priority > chunks[-1][0].row.priority:
                break
            if not work.begun:
                self._begin(work, chunks)
            count = min(work.left, budget - taken)
            if count:
                chunks.append((work, count))
                taken += count
            else:  # a prefix held all of it
                self._finish(work)
        return chunks

    def _begin(self, work: Work, chunks: list[tuple[Work, int]]) -> None:
        work.begun = True
        if work.adopts:
            held = max(min(self.memory.held(work.row), work.end - work.answers) - work.start, 0)
            lent = max((self._lent(work, *chunk) for chunk in chunks), default=0)
            work.prefix = lent if lent >= held + BLOCK else held
            work.tokens -= work.prefix

    def _lent(self, work: Work, other: Work, count: int) -> int:
        """What `other` has of these tokens with its next `count`; the last one is not lent."""
        if not other.adopts:
            return 0
        there = other.end - other.left + count
        return min(self.memory.common(work.row, other.row), there, work.end - 1) - work.start

    def _finish(self, work: Work) -> None:
        self._works.remove(work)
        work.done()
        work.finished.succeed()
