"""The worker's side: it does what a step's orders say, for its own KV heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch

from kvcomm.kv import KV
from kvcomm.vllm.facts import Facts, Told
from kvcomm.vllm.layout import Layer
from kvcomm.vllm.learner import CPU, Learner, Observation, State
from kvcomm.vllm.orders import Ask, Load, Orders, Save, Teach
from kvcomm.vllm.paged import Paged
from kvcomm.vllm.ropes import TableRope
from kvcomm.vllm.store import Store, StoredKV

log = logging.getLogger(__name__)


class Worker:
    """One rank's entries and offset models, beside the cache `paged`.

    Entries are on the CPU, or `on_device`. `models` bytes are for offset models, and `state` is
    where those are kept.
    """

    def __init__(
        self,
        rank: int,
        layers: Sequence[Layer],
        block: int,
        rope: TableRope,
        *,
        on_device: bool = False,
        models: float = float("inf"),
        state: State | None = None,
    ) -> None:
        self.rank = rank
        self.paged = Paged(layers, block)
        self.store = Store(self.paged.device if on_device else CPU, rope)
        self._rope = rope.to(CPU)
        count, heads, dim = self.paged.shape
        like = KV(*2 * [torch.zeros(count, heads, 1, dim)])
        self.learner = Learner(models, like, state)
        self._failed: set[int] = set()
        self._answers: dict[int, Told | None] = {}

    # --- a step ---

    def begin(self, orders: Orders) -> None:
        """What comes before the model runs."""
        for save in orders.before:
            self._save(save)
        for load in orders.loads:
            self._load(load)

    def end(self, orders: Orders) -> None:
        """What comes after it."""
        for save in orders.after:
            self._save(save)
        for ask in orders.asks:
            self._answers[ask.number] = self._answer(ask)
        for entry in orders.drops:
            self.store.drop(entry)

    def failed(self) -> set[int]:
        """The blocks that could not be filled since this was asked last."""
        failed, self._failed = self._failed, set()
        return failed

    def facts(self) -> Facts:
        """What there is to say since then."""
        found, rank = Facts(), self.rank
        models, lessons = self.learner.news()
        answers, self._answers = self._answers, {}
        if models:
            found.models[rank] = models
        if lessons:
            found.lessons[rank] = lessons
        if answers:
            found.answers[rank] = answers
        return found

    def give_up(self, load: Load) -> None:
        """Report a load that was not done: vLLM ends its request with an error."""
        size = self.paged.block
        last = -(-load.stop // size)
        self._failed.update(load.blocks[load.start // size : last])

    # --- its parts ---

    def _load(self, load: Load) -> None:
        if load.fails:
            self.give_up(load)
            return
        device = self.paged.device
        try:
            parts = [
                (fill.start, *self.store.filled(fill, device, self.learner.predict))
                for fill in load.fills
            ]
        except (KeyError, ValueError) as error:
            log.warning("a prompt cannot be filled: %s", error)
            self.give_up(load)
            return
        self.paged.write(load.blocks, parts)

    def _save(self, save: Save) -> None:
        for copy in save.copies:
            self.store.put(copy.entry, self.paged.read(save.blocks, copy.start, copy.stop))
        for teach in save.lessons:
            self.learner.teach(self._lesson(save, teach))

    def _lesson(self, save: Save, teach: Teach) -> Observation:
        """A lesson, with copies of what the cache has: its blocks are others' after the step."""
        truth = self.paged.read(save.blocks, teach.start, teach.stop).to(CPU)
        base = self.store[teach.entry].slice(teach.origin, len(truth))
        behind = None
        if teach.literal is not None:
            stop = teach.stop + teach.behind
            after = self.paged.read(save.blocks, teach.stop, stop).to(CPU)
            behind = partial(self._both, after, self.store[teach.literal])
        free = self._free
        return Observation(
            teach.number, teach.model, partial(free, truth), partial(free, base), behind
        )

    def _free(self, entry: StoredKV) -> KV:
        """Position-free KV of its own."""
        kv = entry.to(CPU).free(self._rope)
        return KV(kv.keys, kv.values.clone())

    def _both(self, truth: StoredKV, base: StoredKV) -> tuple[KV, KV]:
        return self._free(truth), self._free(base)

    def _answer(self, ask: Ask) -> Told | None:
        try:
            entry = self.store[ask.entry].slice(ask.origin, ask.tokens)
            return self.learner.says(ask.model, entry.to(CPU).free(self._rope))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a question about %s has no answer: %s", ask.model, error)
            return None
