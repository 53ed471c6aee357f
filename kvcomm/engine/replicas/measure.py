"""How fast KV moves between two replicas, and how fast one prefills: measured when first asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvcomm.engine.base import Call
from kvcomm.engine.replicas.costs import Rate
from kvcomm.engine.replicas.replica import Replica
from kvcomm.engine.replicas.sequence import ReplicaSequence
from kvcomm.errors import ReplicaLost
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step

if TYPE_CHECKING:
    from kvcomm.engine.replicas.engine import RayEngine

BYTES = (1 << 16, 1 << 22)
CHUNKS = (16, 128, 1024)
LONGER = 2.0
TIMES = 2
PATIENCE_S = 10.0
COMPUTE = Step("compute", "measured")


async def moving(source: Replica, target: Replica) -> Rate:
    """Seconds for bytes, the best of a few times each. Raises `ReplicaLost` without either."""
    best = []
    for nbytes in BYTES:
        times = []
        for _ in range(TIMES):
            began = time.perf_counter()
            ref = source.actor.blank.remote(nbytes)
            if not await target.call("weigh", [ref], PATIENCE_S):
                raise ReplicaLost(f"replica {source.index} was lost")
            times.append(time.perf_counter() - began)
        best.append((nbytes, min(times)))
    return Rate.through(*best)


async def prefill(engine: RayEngine, home: Replica) -> Rate:
    """Seconds in forwards for tokens on an empty context. Raises `ReplicaLost`.

    Where a longer chunk takes hardly more than a short one, still longer ones are tried: the time
    of a short one says nothing about tokens there.
    """
    template = Template(((), ()), ("text",), "measured")
    chunks = sorted({min(count, engine.max_context // 2) for count in CHUNKS})
    seq = ReplicaSequence(
        engine, home, Call(node="measured", template=template, capacity=max(chunks)), "open"
    )
    (token,) = engine.codec.encode("a")[:1]
    found = list[tuple[int, float]]()
    try:
        await _forward(seq, (token,) * chunks[0])  # to warm up
        for count in chunks:
            found.append((count, await _forward(seq, (token,) * count)))
            if found[-1][1] > LONGER * found[0][1]:
                break
    finally:
        await seq.close()
    return Rate.through(found[0], found[-1])


async def _forward(seq: ReplicaSequence, ids: tuple[int, ...]) -> float:
    before = seq.phases.seconds.get("forward", 0.0)
    await seq.extend([Segment("placeholder", "text", ids)], [COMPUTE], settle=False)
    spent = seq.phases.seconds["forward"] - before
    await seq.truncate(0)
    return spent
