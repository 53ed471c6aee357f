"""Steps: the queue of prompts and answers, computed step by step, and what follows from a step.

Belongs to the engine's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from kvcomm.engine.base import BACKGROUND, READY, SAME_TEXT, Token
from kvcomm.engine.clock import done_at
from kvcomm.engine.local.divergence import divergence
from kvcomm.engine.local.runner import Chunk, Runner
from kvcomm.engine.local.scheduler import SHARE, schedule
from kvcomm.engine.local.shared_prefix import shared_prefix
from kvcomm.engine.local.state import Answering, Prefill, SequenceState
from kvcomm.engine.segments import SegmentCache
from kvcomm.errors import NotANumber
from kvcomm.kv import PrefixCache

Events = list[tuple[Answering, Token | BaseException]]


class Steps:
    """What is queued, and how it is computed.

    `held` are sequences that have answered while their message is not out.
    """

    def __init__(self, runner: Runner, prefix: PrefixCache, segments: SegmentCache) -> None:
        self.prompts: list[Prefill] = []
        self.answers: list[SequenceState] = []
        self.held: set[SequenceState] = set()
        self.resolved = False  # a pending entry of the segment cache is there, or never will be
        self._runner = runner
        self.prefix = prefix
        self._segments = segments
        self._count = 0
        self._waited = 0  # steps since the last one with background work

    @property
    def ready(self) -> bool:
        """Whether a call is on its way to its first token."""
        return any(prompt.priority == READY for prompt in self.prompts)

    @property
    def overdue(self) -> bool:
        """Whether the background has its share now, although others have work."""
        return self._waited + 1 >= SHARE

    def may(self, priority: int) -> bool:
        """Whether what has this priority may be done before the next step."""
        if priority == READY:
            return True
        if self.ready or self.held:
            return False
        urgent = any(seq.priority < BACKGROUND for seq in self.answers) or any(
            prompt.priority < BACKGROUND for prompt in self.prompts
        )
        return priority < BACKGROUND or not urgent or self.overdue

    def queue(self, prompt: Prefill) -> None:
        """Compute a prompt when its turn comes."""
        self._count += 1
        prompt.order = self._count
        self.prompts.append(prompt)

    def step(self, calls: bool) -> bool:
        """Compute the next step; False when there is nothing to compute.

        `calls`: sequences are open that are not the background's.
        """
        batch = schedule(
            self.prompts,
            self.answers,
            held=bool(self.held),
            calls=calls,
            waited=self._waited,
            limit=self._runner.limit,
        )
        if not (batch.answers or batch.prompts):
            return False
        self._waited = 0 if batch.background else self._waited + 1
        chunks = self._begin(batch.prompts)
        answers = list(batch.answers)
        if not (answers or chunks):
            return True  # prefixes held all of it
        try:
            logits, chunks = self._runner.run(answers, chunks)
        except Exception as error:  # a failed step fails its own sequences, never the engine
            self.drop([chunk.prompt for chunk in chunks], answers, error)
            return True
        events: Events = []
        for chunk in chunks:
            prompt = chunk.prompt
            if chunk.shared is not None:
                prompt.adopted = chunk.shared.stop
            if prompt.computed < len(prompt.slots or ()):
                continue
            if prompt.query is not None:
                prompt.ask()
            else:
                self._finish(prompt, events)
        for seq, row in zip(answers, logits, strict=True):
            self._sample(seq, row, events)
        _emit(events)
        return True

    def _begin(self, prompts: Sequence[tuple[Prefill, int]]) -> list[Chunk]:
        """The slots that these prompts have computed in this step.

        A prefix is looked up when a prompt's turn comes: until then another one may have computed
        it. An equal beginning of several is computed in the first of them.
        """
        chunks: list[Chunk] = []
        events: Events = []
        for prompt, tokens in prompts:
            shared = None
            try:
                if prompt.slots is None:
                    self._adopt(prompt)
                    prompt.slots = prompt.due()
                    if prompt.adopts and prompt.slots and (shared := shared_prefix(prompt, chunks)):
                        stop = shared.stop
                        prompt.slots = [slot for slot in prompt.slots if slot >= stop]
            except Exception as error:
                self.drop([prompt], [], error)
                continue
            slots = prompt.slots[prompt.computed : prompt.computed + tokens]
            if slots:
                chunks.append(Chunk(prompt, slots, shared))
            else:  # a prefix held all of it
                self._finish(prompt, events)
        _emit(events)
        return chunks

    def _adopt(self, prompt: Prefill) -> None:
        """Copy what the prefix cache holds of a prompt's beginning."""
        seq = prompt.seq
        if prompt.adopts <= prompt.start:
            return
        began = done_at(seq.kv.keys.device)
        match = self.prefix.match(seq.ids[: prompt.adopts], seq.call.namespace)
        if match is not None and match[0] is not seq.buffer and match[1] > prompt.start:
            buffer, held = match
            seq.kv.copy_from(buffer, prompt.start, held)
            prompt.adopted = held
        seq.phases.add("fill", done_at(seq.kv.keys.device) - began)

    def _finish(self, prompt: Prefill, events: Events) -> None:
        """Everything of a prompt is computed."""
        self.prompts = [other for other in self.prompts if other is not prompt]
        seq, logits = prompt.seq, torch.cat(prompt.collected) if prompt.collected else None
        for entry, slots in prompt.claims:
            entry.resolve(seq, slots)
            seq.views.append(entry)
            self.resolved = True
        if prompt.settles:
            self.settle(seq)
        result: Any = None
        if prompt.compare is not None:
            assert logits is not None
            result = divergence(prompt.compare, logits)
        elif prompt.pieces:
            result = prompt.result(time.perf_counter())
        if prompt.future.set_running_or_notify_cancel():
            prompt.future.set_result(result)
        if prompt.answers and seq.answering is not None and logits is not None:
            seq.answering.began = time.perf_counter()
            self.answers.append(seq)
            self._sample(seq, logits[-1], events)

    def settle(self, seq: SequenceState) -> None:
        """All slots of a sequence are final: offer what is exact to the prefix cache."""
        seq.settled = len(seq)
        call, held = seq.call, seq.exact_length
        if (call.reuse.feeds_prefix or call.continues) and held:
            self.prefix.insert(
                seq.kv,
                seq.ids[:held],
                exact=True,
                namespace=call.namespace,
                shared=len(call.template.literals[0]),
                held=True,
                continues=call.continues,
            )

    def _sample(self, seq: SequenceState, logits: torch.Tensor, events: Events) -> None:
        """Draw the next token of a sequence."""
        answering = seq.answering
        assert answering is not None
        sampler = answering.sampler
        try:
            token = sampler.draw(logits)
        except Exception as error:
            if isinstance(error, NotANumber):
                # Whatever was damaged, prefixes that grew from it are not to be trusted.
                self.prefix.clear(seq.call.namespace)
            self.drop([], [seq], error)
            return
        answering.sampled += 1
        if answering.record is not None and len(answering.record) < SAME_TEXT:
            answering.record.append(logits.clone())
        now = time.perf_counter()
        if answering.sampled == 1:
            seq.phases.add("first token", now - answering.began)
        if token in answering.stop:
            found = Token(token, now, "stop")
        elif answering.sampled >= sampler.sampling.max_tokens:
            found = Token(token, now, "length")
        else:
            found = Token(token, now)
            answering.token = token
        events.append((answering, found))
        if found.last:
            self.end_answer(seq, held=seq.call.followed)

    def end_answer(self, seq: SequenceState, *, held: bool = False) -> None:
        """No further token is sampled; `held`: readers of the message may be about to come."""
        self.answers = [other for other in self.answers if other is not seq]
        if held:
            self.held.add(seq)

    def drop(
        self, prompts: Sequence[Prefill], answers: Sequence[SequenceState], error: BaseException
    ) -> None:
        """Fail these prompts and answers."""
        for prompt in prompts:
            self.prompts = [other for other in self.prompts if other is not prompt]
            for entry, _ in prompt.claims:
                self._segments.abandon(entry)
                self.resolved = True
            fail(prompt.future, error)
        for seq in answers:
            self.end_answer(seq)
        _emit([(seq.answering, error) for seq in answers if seq.answering is not None])


def _emit(events: Events) -> None:
    """Hand out what was sampled: to every event loop at once.

    Who waits for several answers that end in one step finds all of them at their end.
    """
    waiting: dict[asyncio.AbstractEventLoop, Events] = {}
    for answering, item in events:
        waiting.setdefault(answering.running, []).append((answering, item))
    for running, items in waiting.items():
        post(running, partial(_put, items))


def _put(events: Events) -> None:
    for answering, item in events:
        answering.tokens.put_nowait(item)


def post(running: asyncio.AbstractEventLoop, task: Callable[[], object]) -> None:
    """Have the event loop do something; one that has closed meanwhile listens no longer."""
    try:
        running.call_soon_threadsafe(task)
    except RuntimeError:
        if not running.is_closed():
            raise


def fail(future: Future[Any], error: BaseException) -> None:
    """Fail a future whose waiter may have gone."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
