"""Equal beginnings in one step: what a prompt takes from another one that computes it there."""

from __future__ import annotations

from collections.abc import Iterable

from kvcomm.engine.local.attention import SharedPrefix
from kvcomm.engine.local.runner import Chunk
from kvcomm.engine.local.state import Prefill
from kvcomm.kv.prefix import BLOCK
from kvcomm.prompt import common_prefix


def shared_prefix(prompt: Prefill, chunks: Iterable[Chunk]) -> SharedPrefix | None:
    """The longest piece of the prompt's next slots that a chunk before it computes.

    Only what is exact, of the same namespace, and at least a block, as in the prefix cache. The
    prompt's last slot is its own.
    """
    assert prompt.slots
    seq, start, end = prompt.seq, prompt.slots[0], prompt.slots[-1]
    ids = seq.ids[: prompt.adopts]
    best: SharedPrefix | None = None
    for chunk in chunks:
        other = chunk.prompt.seq
        if not other.call.reuse.feeds_prefix or other.call.namespace != seq.call.namespace:
            continue
        equal = common_prefix(ids, other.ids[: other.exact_length])
        stop = min(equal, chunk.slots[-1] + 1, end)
        if stop - start >= BLOCK and (best is None or stop > best.stop):
            best = SharedPrefix(other.kv, start, stop)
    return best
