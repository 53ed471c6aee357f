"""A sequence's life: prefix hits, growing, taking back, handing out its message, ending."""

from __future__ import annotations

import gc
import weakref

import pytest

from kvcomm.engine.local import LocalEngine
from tests.engine.support import (
    answer,
    answered,
    extend,
    generate,
    ids_of,
    message,
    on_thread,
    open_seq,
    outgoing,
    random_ids,
    said,
)


async def test_a_prefix_hit_gives_the_same_answer_and_computes_the_rest(tiny: LocalEngine) -> None:
    """Of a prompt held whole its last token; and settled slots are never taken back."""
    ids = random_ids(tiny, 90)
    await extend(open_seq(tiny, 120, prefix=True), ids[:70])
    second = open_seq(tiny, 120, prefix=True)
    (known,) = (await extend(second, ids[:50])).segments
    (rest,) = (await extend(second, ids[50:], answer(20))).segments
    assert (known.source, known.prefix, known.reason) == ("prefix", 50, "in the prefix cache")
    assert (rest.source, rest.prefix, rest.computed) == ("compute", 20, 20)
    assert rest.reason == "in part in the prefix cache"
    with pytest.raises(ValueError, match="settled"):
        await second.truncate(20)
    assert await said(second) == generate(tiny, ids, 20)
    third = open_seq(tiny, 120, prefix=True)
    (done,) = (await extend(third, ids, answer(20))).segments
    assert (done.prefix, done.computed) == (89, 1)
    assert await said(third) == generate(tiny, ids, 20)


async def test_a_sequence_that_outgrows_its_buffer_has_a_larger_one(limited: LocalEngine) -> None:
    """What others found in the old one they find in the new one, and it counts as larger."""
    ids = random_ids(limited, 40)
    seq = open_seq(limited, 25, prefix=True, answer_tokens=20)
    await extend(seq, ids[:25])
    await extend(seq, ids[25:30], settle=False)
    await seq.truncate(25)
    assert limited.admission.used == 50 * limited.slot_bytes
    assert limited.prefix.match(ids) == (seq.state.buffer, 25)
    await extend(seq, ids[25:], answer(20))
    assert limited.admission.used == 60 * limited.slot_bytes
    assert len(limited.prefix) == 1
    assert await said(seq) == generate(limited, ids, 20)


# --- messages ---


async def test_a_handle_covers_what_was_computed_and_no_more(limited: LocalEngine) -> None:
    ids, handle = await message(limited, 14)
    assert handle.tokens == len(ids) == 14
    assert handle.covered == ((0, 13),)  # the last token was sampled, not computed
    assert handle.exact
    base = await on_thread(limited, lambda: limited.segments.get(handle.key))
    assert len(base) == 13
    pinned = await on_thread(limited, lambda: limited.segments.tiers.pinned)
    assert pinned == 13 * limited.slot_bytes
    limited.budget.limit = 8 * 20 * limited.slot_bytes  # 20 tokens, of which 13 are pinned
    assert not limited.retain(handle)
    limited.release(handle)
    assert await on_thread(limited, lambda: handle.key in limited.segments) is False


async def test_a_message_is_there_for_all_its_readers_and_for_late_ones(tiny: LocalEngine) -> None:
    """Its sequence may end at once; nothing is copied that nobody asks for."""
    seq = open_seq(tiny, 100)
    await extend(seq, random_ids(tiny, 30), answer(9))
    ids = ids_of(await answered(seq))
    one = await seq.publish(outgoing(ids), 2)
    same = await seq.publish(outgoing(ids), 1)
    assert one == same
    assert tiny.segments.tiers.nbytes == 0
    assert tiny.retain(one)
    await seq.close()
    for _ in range(4):
        assert await on_thread(tiny, lambda: tiny.segments.get(one.key)) is not None
        tiny.release(one)
    assert await on_thread(tiny, lambda: len(tiny.segments._entries)) == 0
    short = open_seq(tiny, 100)
    await extend(short, random_ids(tiny, 30), answer(1))
    assert await short.publish(outgoing(ids_of(await answered(short))), 1) is None, "no KV"


async def test_an_answer_that_is_stopped_leaves_what_was_kept(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 40, seed=3)
    seq = open_seq(tiny, 200, prefix=True, continues=True)
    await extend(seq, ids, answer(100))
    stream = seq.answer()
    tokens = [(await anext(stream)).id for _ in range(6)]
    await stream.aclose()
    await seq.stop(4)
    handle = await seq.publish(outgoing(tokens[:4]), 1)
    assert handle.covered == ((0, 3),)
    await seq.finish()
    await on_thread(tiny)
    assert tiny.prefix.match([*ids, *tokens]) == (seq.state.buffer, 43)
    tiny.release(handle)


async def test_a_closed_sequence_is_freed_at_once(tiny: LocalEngine) -> None:
    """Without the garbage collector: it does not know how large a buffer is."""
    gc.disable()
    try:
        seq = tiny.open(open_seq(tiny, 100).state.call)
        await extend(seq, random_ids(tiny, 30), answer(5))
        buffer = weakref.ref(seq.state.kv)
        tokens = ids_of(await answered(seq))
        handle = await seq.publish(outgoing(tokens), 1)
        await seq.close()
        kv = await on_thread(tiny, lambda: tiny.segments.get(handle.key))
        assert len(kv) == 4  # the message outlives its sequence
        tiny.release(handle)
        await tiny.drain()
        assert buffer() is None
        assert await on_thread(tiny, lambda: tiny.admission.used) == 0
    finally:
        gc.enable()
