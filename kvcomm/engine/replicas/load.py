"""Starting replicas: Ray, quiet and local unless told otherwise, and one actor a replica."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from kvcomm.engine.replicas.actor import About
from kvcomm.engine.replicas.actor import Replica as Hosted
from kvcomm.engine.replicas.engine import RayEngine
from kvcomm.engine.replicas.replica import Replica
from kvcomm.errors import KvcommError, ModelError

# Operations that wait (for room, for a first token, for a row to be lost) hold a place each.
CONCURRENT = 10_000
# What Ray does only if asked: no statistics leave the machine, no prompt waits for an answer.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def build_replicas(
    model: str,
    replicas: int | None,
    address: str | None,
    device: str | None,
    dtype: str | None,
    memory: int | None,
) -> RayEngine:
    """Start everything and wait for it. Raises `ModelError` for a model that cannot be loaded."""
    if replicas is not None and replicas < 1:
        raise ModelError(f"{replicas} replicas: at least 1 is needed")
    end = _start(address)
    made: list[Replica] = []
    try:
        count, share = _shares(replicas, device)
        options = {"max_restarts": -1, "max_concurrency": CONCURRENT, **share}
        actor = ray.remote(Hosted).options(scheduling_strategy="SPREAD", **options)
        made += [Replica(i, actor.remote(model, device, dtype, memory)) for i in range(count)]
        about = _about(made)
        if len({found.fingerprint for found in about}) > 1:
            raise ModelError(f"{model} is not the same model on all machines of the cluster")
        return RayEngine(made, about[0], end)
    except BaseException:
        for replica in made:
            replica.stop()
        end()
        raise


def _about(replicas: list[Replica]) -> list[About]:
    try:
        return ray.get([replica.actor.about.remote() for replica in replicas])  # type: ignore[no-any-return]
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, KvcommError) else ModelError(str(cause))) from None
    except RayActorError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"a replica did not start: {lines[-1] if lines else error!r}") from None


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
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(
            f"Ray did not start at {address or 'this machine'} ({first}): start a cluster with "
            "`ray start --head`, or leave out the address"
        ) from None
    return lambda: ray.shutdown()


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
