"""Reading texts ahead: a prompt is computed for the KV of its inputs, and nobody answers it."""

from __future__ import annotations

from collections.abc import Sequence

from kvcomm.engine.base import CallSpec, Engine, Extended
from kvcomm.prompt import Segment
from kvcomm.reuse.policy import Dense, ReuseOptions

READ = Dense("read ahead", ReuseOptions(bases="borrowed"))


async def read_ahead(
    engine: Engine, call: CallSpec, segments: Sequence[Segment], offsets: str = ""
) -> Extended:
    """Compute a prompt whose inputs `call` shares, and teach the family `offsets`, if there is one.

    Returns when what it left is there for others.
    """
    seq = engine.open(call)
    try:
        done = await seq.extend(segments, READ)
        await seq.finish(segments, offsets)
    finally:
        await seq.close()
    await engine.drain()
    return done
