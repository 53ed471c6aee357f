"""Replicas of one model as actors of Ray, which run whole graphs; made by `load_ray`.

A run goes to the replica with the fewest of them. What replicas learn is summed up here, in the
driver: it takes from each what it observed, and tells the others when they begin something next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from kvcomm.background import Background
from kvcomm.engine.base import Capabilities, LearnedState
from kvcomm.engine.local.memory import free_memory
from kvcomm.engine.replica import About, ReplicaHost, Statistics, Task, TaskEnd
from kvcomm.engine.replicated import ReplicatedEngine
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import KvcommError, ModelError, ReplicaLost, UsageError
from kvcomm.own_file import own_modules
from kvcomm.reuse.offsets import FAMILIES, Offsets
from kvcomm.reuse.state import check_folder, copy_state, load_state, save_state

T = TypeVar("T")
# Every run that goes on holds a place of its actor.
CONCURRENT = 10_000
# How often replicas that are down are looked for, and how long, where none is up.
LOOK_S = 0.2
PATIENCE_S = 120.0
CPU = torch.device("cpu")
# What Ray does only if asked: no statistics leave the machine, no prompt waits for an answer.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(eq=False)
class Replica:
    """One actor as the driver sees it: `about` is None while it is down.

    `tasks` are under way on it, `placed` were begun on it so far. `dead`: Ray does not start it
    again.
    """

    index: int
    actor: Any
    about: About | None = None
    dead: bool = False
    tasks: int = 0
    placed: int = 0
    _back: Future[About] | None = None

    async def ask(self, operation: str, *args: Any) -> Any:
        """What an operation of the actor returns. Raises `ReplicaLost` when it is gone."""
        return await self.found(getattr(self.actor, operation).remote(*args))

    async def found(self, ref: Any) -> Any:
        """The value of a reference. Raises `ReplicaLost` when the replica is gone."""
        try:
            # Shielded: Ray sets the results of futures that nobody waits for, too.
            return await asyncio.shield(asyncio.wrap_future(ref.future()))
        except RayTaskError:
            raise
        except RayError:
            raise self.lost() from None

    def lost(self) -> ReplicaLost:
        """It does not answer: leave it out until it does again."""
        if self.about is not None:
            self.about, self._back = None, self.actor.about.remote().future()
        return ReplicaLost(f"replica {self.index} was lost")

    def look(self) -> bool:
        """Whether it is up, or has come back."""
        if self.about is None and self._back is not None and self._back.done():
            try:
                self.about, self._back, self.dead = self._back.result(), None, False
            except RayError as error:
                self.dead = isinstance(error, ActorDiedError)
                self._back = self.actor.about.remote().future()
        return self.about is not None


class RayEngine(ReplicatedEngine):
    """Runs whole graphs on replicas; see `kvcomm.engine.base.Replicated` for the contract.

    `memory` is the budget of each replica, `end` ends what was started for this engine. Sums add
    up, so the `total` of what replicas learned is what one engine would have learned.
    """

    fingerprint: str
    weights: str
    capabilities: Capabilities

    def __init__(
        self,
        replicas: Sequence[Replica],
        about: About,
        memory: int | None = None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.replicas = tuple(replicas)
        vars(self).update(about.engine)
        self.codec = TokenizerCodec(about.tokenizer)
        self.codec.most = self.max_context
        self._end = end
        self._limit = (memory or free_memory(CPU) // 2) // 4
        self.total = self._nothing()
        # What each has yet to be told in this life: started anew, it knows nothing.
        self._untold: dict[int, tuple[str, Offsets]] = {}
        self._saved: dict[Path, dict[str, int]] = defaultdict(dict)
        self._lock = threading.Lock()
        self._background = Background("kvcomm-learning")

    def _nothing(self) -> Offsets:
        return Offsets(dict(FAMILIES), lambda: self._limit)

    async def place(self, key: str = "", *, stay: bool = False) -> Replica:
        """The replica with the fewest tasks; of several, the one that had the `key` last.

        Raises `KvcommError` when all are lost and none comes back.
        """
        began = time.monotonic()
        while not (up := [replica for replica in self.replicas if replica.look()]):
            dead = all(replica.dead for replica in self.replicas)
            if dead or time.monotonic() - began > PATIENCE_S:
                why = "Ray starts none again" if dead else f"none came back within {PATIENCE_S:g} s"
                raise KvcommError(
                    f"all {len(self.replicas)} replicas are lost, and {why}: look at the cluster "
                    "(`ray status`), and load the engine again"
                )
            await asyncio.sleep(LOOK_S)
        return self._chosen(up, key, stay)

    def pickled(self, task: Task, parts: Mapping[str, Any]) -> bytes:
        for module in own_modules:
            cloudpickle.register_pickle_by_value(module)
        for name, part in {**parts, "the run": task}.items():
            try:
                found: bytes = cloudpickle.dumps(part)
            except Exception as error:
                raise UsageError(
                    f"{name} cannot be sent to a replica: {error}. Let its functions make what "
                    "cannot be sent (open files, locks, connections) when they are called"
                ) from error
        return found

    async def do(
        self,
        replica: Replica,
        task: bytes,
        receive: Callable[[Any], Awaitable[None]],
        *,
        learns: bool = False,
    ) -> Any:
        if replica.about is None:
            raise replica.lost()
        name, life = secrets.token_hex(8), replica.about.life
        replica.tasks, replica.placed = replica.tasks + 1, replica.placed + 1
        news = [self._news(replica.index, life)] if learns else []
        run = replica.actor.run.options(num_returns="streaming")
        items = run.remote(name, life, task, *news)
        try:
            return await _received(replica, items, receive)
        except asyncio.CancelledError:
            with suppress(Exception):
                await replica.ask("cancel", name)
                await _received(replica, items, receive)
            raise
        finally:
            replica.tasks -= 1
            if learns and not self._background.closed:  # behind the answer
                self._background.start(self._collect(replica))

    def _news(self, index: int, life: str) -> Statistics:
        """What a replica has yet to be told, which counts as told."""
        with self._lock:
            told, untold = self._untold.get(index, ("", self.total))
            self._untold[index] = life, self._nothing()
            return _statistics(untold if told == life else self.total)

    async def _collect(self, replica: Replica) -> None:
        """Add what a replica observed, and hand on what it tells of runs that have answered.

        What was observed on one that is gone is gone with it.
        """
        if replica.about is None:
            return
        life = replica.about.life
        with suppress(ReplicaLost):
            observed, told = await replica.ask("take")
            with self._lock:
                _add(self.total, observed)
                self._tell(observed, but=life)
            for name, item in told:
                self._told(name, item)

    def _tell(self, statistics: Statistics, but: str = "") -> None:
        for life, untold in self._untold.values():
            if life != but:
                _add(untold, statistics)

    async def _behind(self, operation: Coroutine[Any, Any, T]) -> T:
        """The value of a coroutine that is finished whoever waits for it: what was taken from a
        replica has to arrive.
        """
        return await asyncio.shield(asyncio.wrap_future(self._background.start(operation)))

    async def drain(self) -> None:
        """Wait until replicas have made all audits, and collect what came of them."""
        for replica in self.replicas:
            if replica.about is not None:
                with suppress(ReplicaLost):
                    await replica.ask("drain")
            await self._behind(self._collect(replica))

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """Read what a namespace has learned, for all replicas. Raises `StateError`."""

        async def load() -> LearnedState:
            check_folder(folder, self.model, self.fingerprint)
            with self._lock:
                loaded = load_state(folder, self.total, CPU, namespace)
                versions = self.total.versions
                self._saved[folder] |= {name: versions.get(name, 0) for name in loaded.read}
                known = _statistics(self.total).items()
                self._tell({key: state for key, state in known if key[1] in loaded.read})
            reason = "read" if loaded.templates else "nothing saved yet"
            if loaded.refused:
                reason = "set aside: " + "; ".join(loaded.refused)
            return LearnedState(str(folder), loaded.templates, loaded.samples, reason)

        return await self._behind(load())

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what replicas have learned and the folder does not hold; returns the bytes.

        Raises `StateError`.
        """

        async def save() -> int:
            await asyncio.gather(*map(self._collect, self.replicas))
            saved = self._saved[folder]
            with self._lock:
                learned = copy_state(self.total, namespace, saved)
            written = save_state(folder, self.model, self.fingerprint, learned)
            saved |= {template: version for template, (version, _) in learned.items()}
            return written

        return await self._behind(save())

    def close(self) -> None:
        """Save what was learned; end the replicas, and Ray where it was started for them."""
        super().close()
        self._background.close()
        self._unhear_all()
        for replica in self.replicas:
            ray.kill(replica.actor)
        self._end()


async def _received(
    replica: Replica, items: AsyncIterator[Any], receive: Callable[[Any], Awaitable[None]]
) -> Any:
    """Hand on what a task emits, and return what it returns."""
    async for ref in items:
        for item in await replica.found(ref):
            if not isinstance(item, TaskEnd):
                await receive(item)
            elif item.error is not None:
                raise item.error
            else:
                return item.value
    raise replica.lost()


def _add(to: Offsets, statistics: Statistics) -> None:
    for key, state in statistics.items():
        to.merge(key, state)
    to.trim()


def _statistics(offsets: Offsets) -> Statistics:
    return {key: model.state() for key, model in offsets.models.items() if model.samples}


def build_replicas(
    load: Callable[[], Any],
    replicas: int | None,
    address: str | None,
    device: str | None,
    memory: int | None,
) -> RayEngine:
    """Start everything and wait for it; each replica's engine is `load`ed there.

    Raises `ModelError` for a model that cannot be loaded.
    """
    if replicas is not None and replicas < 1:
        raise ModelError(f"{replicas} replicas: at least 1 is needed")
    end = _start(address)
    made: list[Replica] = []
    try:
        count, share = _shares(replicas, device)
        options = {"max_restarts": -1, "max_concurrency": CONCURRENT, **share}
        actor = ray.remote(ReplicaHost).options(scheduling_strategy="SPREAD", **options)
        made += [Replica(i, actor.remote(load)) for i in range(count)]
        found = ray.get([replica.actor.about.remote() for replica in made])
        if len({about.engine["fingerprint"] for about in found}) > 1:
            model = found[0].engine["model"]
            raise ModelError(f"{model} is not the same model on all machines of the cluster")
        for replica, about in zip(made, found, strict=True):
            replica.about = about
        return RayEngine(made, found[0], memory, end)
    except BaseException as error:
        for replica in made:
            ray.kill(replica.actor)
        end()
        if isinstance(error, RayTaskError):
            cause = error.cause
            raise (cause if isinstance(cause, KvcommError) else ModelError(str(cause))) from None
        if isinstance(error, RayActorError):
            lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
            raise ModelError(f"a replica did not start: {lines[-1]}") from None
        raise


def _start(address: str | None) -> Callable[[], None]:
    """Join the cluster at `address` or RAY_ADDRESS, or start one here; returns how to leave it."""
    if ray.is_initialized():
        return lambda: None
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or None
    # A node that finds out its own address may find one that others cannot reach, and hang.
    here: dict[str, Any] = {} if address else {"_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **here,
        )
    except Exception as error:  # Ray raises anything
        why = (str(error).strip().splitlines() or [repr(error)])[0]
        what = f"at this machine ({why}): its logs are in /tmp/ray/session_latest/logs"
        if address:
            advice = "start a cluster with `ray start --head`, or leave out the address"
            what = f"at {address} ({why}): {advice}"
        raise ModelError(f"Ray did not start {what}") from None
    return ray.shutdown  # type: ignore[no-any-return]


def _shares(replicas: int | None, device: str | None) -> tuple[int, dict[str, float]]:
    """How many replicas, and what each takes: a GPU, or its share of the processors."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and device != "cpu":
        return replicas or gpus, {"num_gpus": 1}
    processors = [node.get("CPU", 0) for node in nodes if node.get("CPU", 0)]
    count = replicas or len(processors)
    share = min(sum(processors) / count, *processors)
    return count, {"num_cpus": math.floor(share) if share >= 1 else share}
