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


async def test_a_prefix_hit_gives_the_same_answer_and_computes_only_the_rest(
    tiny: LocalEngine,
) -> None:
    ids = random_ids(tiny, 90)
    first = open_seq(tiny, 120, prefix=True)
    await extend(first, ids[:70])
    second = open_seq(tiny, 120, prefix=True)
    done = [await extend(second, ids[:50]), await extend(second, ids[50:], answer(20))]
    (known,), (rest,) = (one.segments for one in done)
    assert (known.source, known.prefix, known.reason) == ("prefix", 50, "in the prefix cache")
    assert (rest.source, rest.prefix, rest.computed) == ("compute", 20, 20)
    assert rest.reason == "in part in the prefix cache"
    assert await said(second) == generate(tiny, ids, 20)


async def test_a_prompt_held_whole_still_computes_its_last_token(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 48)
    for prefix, computed in ((0, 48), (47, 1)):
        seq = open_seq(tiny, 80, prefix=True)
        (done,) = (await extend(seq, ids, answer(20))).segments
        assert (done.prefix, done.computed) == (prefix, computed)
        tokens = await said(seq)
    assert tokens == generate(tiny, ids, 20)


async def test_namespaces_never_share_prefixes(tiny: LocalEngine) -> None:
    for namespace in ("a", "b"):
        seq = open_seq(tiny, 80, prefix=True, namespace=namespace)
        (done,) = (await extend(seq, random_ids(tiny, 48))).segments
        assert done.prefix == 0


@pytest.mark.parametrize("continues", [False, True])
async def test_a_conversation_goes_on_behind_its_answer(tiny: LocalEngine, continues: bool) -> None:
    ids = random_ids(tiny, 40)
    seq = open_seq(tiny, 80, prefix=True, continues=continues)
    await extend(seq, ids, answer(12))
    tokens = ids_of(await answered(seq))
    await seq.finish()
    await seq.close()
    later = open_seq(tiny, 120, prefix=True)
    (done,) = (await extend(later, [*ids, *tokens, 11, 12], answer(4))).segments
    assert done.prefix == len(ids) + len(tokens) - 1


# --- growing and taking back ---


async def test_settled_slots_are_never_taken_back(tiny: LocalEngine) -> None:
    seq = open_seq(tiny, 80)
    await extend(seq, random_ids(tiny, 25))
    with pytest.raises(ValueError, match="settled"):
        await seq.truncate(20)
    assert seq.length == 25


async def test_a_sequence_moves_into_a_larger_buffer_when_it_outgrows_its_own(
    limited: LocalEngine,
) -> None:
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


async def test_a_handle_covers_what_was_computed_and_no_more(tiny: LocalEngine) -> None:
    ids, handle = await message(tiny, 14)
    assert handle.tokens == len(ids) == 14
    assert handle.covered == ((0, 13),)  # the last token was sampled, not computed
    assert handle.exact
    base = await on_thread(tiny, lambda: tiny.segments.get(handle.key))
    assert len(base) == 13
    tiny.release(handle)
    assert await on_thread(tiny, lambda: handle.key in tiny.segments) is False


async def test_a_message_is_there_for_all_its_readers_and_for_late_ones(tiny: LocalEngine) -> None:
    """Its sequence may end at once; nothing is copied that nobody asks for."""
    seq = open_seq(tiny, 100)
    await extend(seq, random_ids(tiny, 30), answer(9))
    ids = ids_of(await answered(seq))
    one = await seq.publish(outgoing(ids), 2)
    same = await seq.publish(outgoing(ids), 1)
    assert one == same
    assert one is not None
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


async def test_too_much_is_not_retained(limited: LocalEngine) -> None:
    _, handle = await message(limited, 14)
    pinned = await on_thread(limited, lambda: limited.segments.tiers.pinned)
    assert pinned == 13 * limited.slot_bytes
    limited.budget.limit = 8 * 20 * limited.slot_bytes  # 20 tokens, of which 13 are pinned
    assert not limited.retain(handle)
    limited.release(handle)


async def test_an_answer_that_is_stopped_leaves_what_was_kept(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 40, seed=3)
    seq = open_seq(tiny, 200, prefix=True, continues=True)
    await extend(seq, ids, answer(100))
    stream = seq.answer()
    tokens = [(await anext(stream)).id for _ in range(6)]
    await stream.aclose()
    await seq.stop(4)
    handle = await seq.publish(outgoing(tokens[:4]), 1)
    assert handle is not None
    assert handle.covered == ((0, 3),)
    await seq.finish()
    await on_thread(tiny)
    assert tiny.prefix.match([*ids, *tokens]) == (seq.state.buffer, 43)
    tiny.release(handle)


# --- ending ---


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
        assert handle is not None
        kv = await on_thread(tiny, lambda: tiny.segments.get(handle.key))
        assert len(kv) == 4  # the message outlives its sequence
        tiny.release(handle)
        await tiny.drain()
        assert buffer() is None
        assert await on_thread(tiny, lambda: tiny.admission.used) == 0
    finally:
        gc.enable()
