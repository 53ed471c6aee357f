"""Lessons, learned one after the other in a thread of their own, and kept in a folder.

The thread owns the offset models. What predicts in a step is a copy of each as it was after its
last lesson, so that nobody waits. All of it is on the CPU, where lessons' tensors are copied to.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kvcomm.engine.realign import Base, observe
from kvcomm.kv import KV
from kvcomm.reuse.offsets import FAMILIES, AnchorPool, OffsetModel, Offsets
from kvcomm.reuse.offsets.base import NOTHING
from kvcomm.reuse.plan import Predictability
from kvcomm.reuse.state import check_folder, copy_state, load_state, save_state
from kvcomm.vllm.facts import Told
from kvcomm.vllm.orders import Model

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
# The state is saved when nothing was learned for so long, in seconds, and now and then.
QUIET_S, OFTEN_S = 2.0, 30.0


@dataclass(frozen=True, eq=False)
class Observation:
    """Observation `number`: what makes truth and base KV of a text, and of the literal behind it.

    They are made in the thread; `literal` has its truth before its base KV.
    """

    number: int
    model: Model
    truth: Callable[[], KV]
    base: Callable[[], KV]
    literal: Callable[[], tuple[KV, KV]] | None = None


@dataclass
class State:
    """The folder that a rank's models are kept in, and whose they are."""

    folder: Path
    model: str
    fingerprint: str
    saved: dict[str, int] = field(default_factory=dict)


class Learner:
    """The offset models of one rank. `budget` bytes are theirs; `like` is KV of one token.

    `state` is where they were kept and will be; None: nowhere.
    """

    def __init__(self, budget: float, like: KV, state: State | None) -> None:
        self._offsets = Offsets(FAMILIES, budget=lambda: budget, like=like)
        self._state = state
        self._frozen: dict[Model, OffsetModel] = {}
        self._news: dict[Model, Told | None] = {}
        self._over: list[int] = []
        self._lock = threading.Lock()  # of the two above
        self._queue: queue.SimpleQueue[Observation | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.refused = self._restore()

    # --- called in steps ---

    def teach(self, lesson: Observation) -> None:
        """Learn this when its turn comes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvcomm-lessons", daemon=True)
            self._thread.start()
        self._queue.put(lesson)

    def news(self) -> tuple[dict[Model, Told | None], tuple[int, ...]]:
        """What models say that have changed since it was asked last, and the lessons over."""
        with self._lock:
            news, self._news = self._news, {}
            over, self._over = tuple(self._over), []
        return news, over

    def predict(self, model: Model, base: KV, literal: int | None = None) -> KV:
        """The offset of a text with this base KV, or of a literal of so many tokens behind it.

        Raises `ValueError` where that cannot be predicted.
        """
        found = self._frozen.get(model)
        if found is None:
            raise ValueError(f"nothing was learned of {model}")
        if literal is not None:
            return found.predict_literal(base, literal)
        return found.predict(base)

    def says(self, model: Model, base: KV) -> Told:
        """Whether the offset of a text with this base KV can be predicted.

        Raises `KeyError` or `TypeError` for a family that there is not.
        """
        found = self._frozen.get(model) or self._offsets.new(model[0])
        return told(found, found.predictability(base))

    def close(self, patience: float = 10.0) -> None:
        """Learn what waits, and keep it."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience)

    # --- the thread ---

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # behind those who are waited for
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        saved, dirty = time.monotonic(), False
        while True:
            try:
                lesson = self._queue.get(timeout=QUIET_S if dirty else None)
            except queue.Empty:
                self._save()
                saved, dirty = time.monotonic(), False
                continue
            if lesson is None:
                self._save()
                return
            try:
                self._learn(lesson)
            except Exception:
                log.exception("lesson %d could not be learned", lesson.number)
            with self._lock:
                self._over.append(lesson.number)
            dirty = True
            if time.monotonic() - saved > OFTEN_S:
                self._save()
                saved, dirty = time.monotonic(), False

    def _learn(self, lesson: Observation) -> None:
        family, template, label = key = _kept(lesson.model)
        base, truth = lesson.base(), lesson.truth()
        model = self._offsets.named(family, template, label)
        literal = lesson.literal() if lesson.literal else None
        observe(model, truth, Base(base, range(len(base))), literal)
        self._offsets.learned(template)
        before = set(self._offsets.models)
        self._offsets.trim()
        for gone in map(_asked, before.difference(self._offsets.models)):
            self._frozen.pop(gone, None)
            self._tell(gone, None)
        if key in self._offsets.models:
            self._publish(key)

    def _publish(self, key: Model) -> None:
        """Have steps predict with a model as it is now."""
        frozen = self._offsets.models[key].frozen()
        self._frozen[_asked(key)] = frozen
        self._tell(_asked(key), told(frozen, frozen.predictability(NOTHING)))

    def _tell(self, model: Model, news: Told | None) -> None:
        with self._lock:
            self._news[model] = news

    # --- the folder ---

    def _restore(self) -> str:
        """Read what was learned before; returns why it was not."""
        if self._state is None:
            return ""
        try:
            check_folder(self._state.folder, self._state.model, self._state.fingerprint)
            loaded = load_state(self._state.folder, self._offsets, CPU)
        except Exception as error:
            self._state = None
            return f"what was learned is neither read nor kept: {error}"
        for key in self._offsets.models:
            self._offsets.versions[key[1]] = 0
            self._state.saved[key[1]] = 0
            self._publish(key)
        return "; ".join(loaded.refused)

    def _save(self) -> None:
        state = self._state
        if state is None:
            return
        try:
            learned = copy_state(self._offsets, "", state.saved)
            save_state(state.folder, state.model, state.fingerprint, learned)
            state.saved.update({name: version for name, (version, _) in learned.items()})
        except Exception:
            log.exception("what was learned could not be kept in %s", state.folder)


def _kept(model: Model) -> Model:
    """A model as its state file calls it: in the names of those, a hyphen ends a namespace."""
    return model[0], model[1].replace("-", "_"), model[2]


def _asked(model: Model) -> Model:
    """The inverse: no template is asked for with an underscore."""
    return model[0], model[1].replace("_", "-"), model[2]


def told(model: OffsetModel, found: Predictability) -> Told:
    """What a model says, with what ranks need to say it together."""
    state = model.state()
    left, total = 0.0, 0.0
    if "counters" in state:
        _, _, left, total = state["counters"].tolist()
    lengths = {name: t.shape[2] for name, t in state.items() if name.endswith(".keys")}
    reach = None
    if isinstance(model, AnchorPool):
        reach = max((n for name, n in lengths.items() if ".base." in name), default=0)
    literals = {n for name, n in lengths.items() if "literal.keys" in name}
    return Told(
        found.shareable,
        found.reason,
        found.samples,
        found.error,
        left,
        total,
        reach,
        tuple(sorted(literals)),
    )
