"""A row's life: prefix hits, realigning, taking back, handing out, learning."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kvcomm.engine.base import Call
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import NOT_LENT
from kvcomm.engine.sequence import LocalSequence
from kvcomm.errors import ContextOverflow
from kvcomm.kv import Slab
from kvcomm.message import Outgoing, Span
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step
from kvcomm.reuse.policy import Kvcomm
from tests.engine.support import (
    COMPUTE,
    answer,
    decode,
    generate,
    ids_of,
    open_row,
    plain_logits,
    random_ids,
    segment,
)
from tests.support import TINY

TEMPLATE = Template(
    literals=(tuple(range(20, 45)), tuple(range(60, 69)), tuple(range(80, 86))),
    names=("task", "critic"),
    fingerprint="template-of-the-tests",
)


def call(**changes: object) -> Call:
    base = Call(
        node="n",
        template=TEMPLATE,
        capacity=200,
        messages=frozenset({"critic"}),
        reads_prefix=True,
        feeds_prefix=False,
        offsets="anchors",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


async def publish_message(engine: LocalEngine, count: int = 14):  # type: ignore[no-untyped-def]
    """A message decoded in another row: its ids and handle, the last token without KV."""
    producer = open_row(engine, 100)
    await producer.extend(
        [segment(random_ids(engine, 30, seed=8))], [COMPUTE], answer=answer(count)
    )
    ids = ids_of(await decode(producer))
    message = Outgoing("text", tuple(ids), (Span(0, 0, len(ids)),))
    return tuple(ids), await producer.publish(message, [0])


async def prompt_of(engine: LocalEngine) -> list[Segment]:
    ids, handle = await publish_message(engine)
    task = tuple(random_ids(engine, 17, seed=9))
    return TEMPLATE.fill({"task": task, "critic": ids}, {"critic": handle})


def whole(segments: list[Segment]) -> list[int]:
    return [i for item in segments for i in item.ids]


def test_a_prefix_hit_gives_the_same_answer_and_computes_only_the_rest(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 90)

    async def go() -> tuple[list[int], int, int]:
        first = open_row(tiny, 120, prefix=True)
        await first.extend([segment(ids[:70])], [COMPUTE])
        await first.settle()
        second = open_row(tiny, 120, prefix=True)
        parts = [segment(ids[:50]), segment(ids[50:])]
        done = await second.extend(parts, [COMPUTE, COMPUTE], answer=answer(20))
        assert [d.way for d in done] == ["prefix", "compute"]
        tokens = ids_of(await decode(second))
        return tokens, sum(d.prefix for d in done), sum(d.computed for d in done)

    tokens, prefix, computed = asyncio.run(go())
    assert (prefix, computed) == (70, 20)
    assert tokens == generate(tiny, ids, 20)


def test_a_prompt_held_whole_still_computes_its_last_token(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 48)

    async def go() -> list[int]:
        for _ in range(2):
            seq = open_row(tiny, 80, prefix=True)
            (done,) = await seq.extend([segment(ids)], [COMPUTE], answer=answer(20))
            await seq.settle()
        assert (done.prefix, done.computed) == (47, 1)
        return ids_of(await decode(seq))

    assert asyncio.run(go()) == generate(tiny, ids, 20)


def test_namespaces_never_share_prefixes(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 48)

    async def go() -> int:
        for namespace in ("a", "b"):
            seq = open_row(tiny, 80, prefix=True, namespace=namespace)
            (done,) = await seq.extend([segment(ids)], [COMPUTE])
            await seq.settle()
        return done.prefix

    assert asyncio.run(go()) == 0


def test_what_was_computed_can_be_taken_back(tiny: LocalEngine) -> None:
    ids, wrong = random_ids(tiny, 40), random_ids(tiny, 12, seed=4)

    async def go() -> list[int]:
        seq = open_row(tiny, 80)
        await seq.extend([segment(ids[:25])], [COMPUTE])
        await seq.extend([segment(wrong)], [COMPUTE], settle=False)
        await seq.truncate(25)
        await seq.extend([segment(ids[25:])], [COMPUTE], answer=answer(20))
        return ids_of(await decode(seq))

    assert asyncio.run(go()) == generate(tiny, ids, 20)


def test_settled_slots_are_never_taken_back(tiny: LocalEngine) -> None:
    async def go() -> None:
        seq = open_row(tiny, 80)
        await seq.extend([segment(random_ids(tiny, 25))], [COMPUTE])
        await seq.settle()
        await seq.truncate(20)

    with pytest.raises(ValueError, match="settled"):
        asyncio.run(go())


def test_a_row_moves_into_a_larger_slab_when_it_outgrows_its_own(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 40)

    async def go() -> list[int]:
        seq = open_row(tiny, 25)
        await seq.extend([segment(ids[:25])], [COMPUTE])
        await seq.reserve(60)
        await seq.extend([segment(ids[25:])], [COMPUTE], answer=answer(20))
        return ids_of(await decode(seq))

    assert asyncio.run(go()) == generate(tiny, ids, 20)


def test_a_call_beyond_the_context_is_refused_with_numbers(tiny: LocalEngine) -> None:
    with pytest.raises(
        ContextOverflow, match=r"may need 9000 tokens, 808 more than the context of"
    ):
        open_row(tiny, 9000)


def test_a_handle_covers_what_was_computed_and_no_more(tiny: LocalEngine) -> None:
    async def go() -> None:
        ids, handle = await publish_message(tiny, 14)
        assert handle.tokens == len(ids) == 14
        assert handle.covered == ((0, 13),)  # the last token was sampled, not computed
        assert handle.exact
        base = tiny.store.get(handle.key)
        assert base is not None
        assert len(base) == 13
        await tiny.release(handle, 0)
        tiny.store.check_integrity()

    asyncio.run(go())


def test_a_message_that_nobody_realigns_leaves_no_kv_behind(tiny: LocalEngine) -> None:
    async def go() -> None:
        _, handle = await publish_message(tiny)
        assert handle.key in tiny.store
        await tiny.release(handle, 0)
        assert handle.key not in tiny.store

    asyncio.run(go())


def lent(engine: LocalEngine, segments: list[Segment], steps: list[Step], index: int):  # type: ignore[no-untyped-def]
    """What a row lends of the segment at `index` when its prompt is there; surveyed segments."""

    async def go():  # type: ignore[no-untyped-def]
        seq = engine.open(call())
        survey = await seq.survey(segments)
        await seq.extend(survey.segments, steps)
        start = sum(map(len, segments[:index]))
        handle = await seq.lend(start, len(segments[index]), [3])
        await seq.close()
        return handle

    return go()


def test_lent_kv_in_the_same_place_is_the_truth(tiny: LocalEngine) -> None:
    async def go() -> None:
        segments = await prompt_of(tiny)
        handle = await lent(tiny, segments, [COMPUTE] * len(segments), 1)
        assert (handle.covered, handle.exact) == (((0, len(segments[1])),), True)
        again = [replace(s, handle=handle) if i == 1 else s for i, s in enumerate(segments)]
        seq = tiny.open(call(borrows=True, reads_prefix=False))
        survey = await seq.survey(again)
        assert survey.base_tokens == 0
        assert survey.facts[1].covered
        steps = [COMPUTE, Step("realign", "", corrected=False), *[COMPUTE] * (len(segments) - 2)]
        done = await seq.extend(survey.segments, steps, answer=answer(12))
        assert done[1].realigned == len(segments[1])
        tokens = ids_of(await decode(seq))
        assert tokens == generate(tiny, whole(segments), 12)
        await tiny.release(handle, 3)
        assert handle.key not in tiny.store

    asyncio.run(go())


def test_only_exact_kv_is_lent(tiny: LocalEngine) -> None:
    """Behind a realigned message everything is approximate: it is lent to nobody."""

    async def go() -> None:
        segments = await prompt_of(tiny)
        steps = [COMPUTE] * len(segments)
        steps[3] = Step("realign", "", (len(segments[3]) - 1,), corrected=False)
        assert await lent(tiny, segments, steps, 1) is not None
        assert await lent(tiny, segments, steps, 3) is None
        assert await lent(tiny, segments, steps, 4) is None
        empty = tiny.open(call())
        assert await empty.lend(0, 1, [3]) is None
        assert await empty.lend(0, 0, [3]) is None

    asyncio.run(go())


def test_who_borrows_has_base_kv_of_its_own_of_nothing(tiny: LocalEngine) -> None:
    async def go() -> None:
        segments = [replace(s, handle=None) for s in await prompt_of(tiny)]
        survey = await tiny.open(call(borrows=True)).survey(segments, literals=False)
        task = next(fact for fact in survey.facts if fact.name == "task")
        assert (task.covered, task.absent) == ((), NOT_LENT)
        assert survey.base_tokens == 0

    asyncio.run(go())


def dense_truth(engine: LocalEngine, segments: list[Segment]) -> torch.Tensor:
    return plain_logits(engine, whole(segments))[-1]


def realign_with(engine: LocalEngine, segments: list[Segment], teach: list[Segment] | None):  # type: ignore[no-untyped-def]
    """Last logits of a realigned call after two dense calls on `teach`, and what was extended."""

    async def go():  # type: ignore[no-untyped-def]
        for _ in range(2):
            if teach is None:
                break
            seq = engine.open(call())
            survey = await seq.survey(teach)
            await seq.extend(survey.segments, [COMPUTE] * len(teach), answer=answer(20))
            await seq.observe([1, 3])
        seq = engine.open(call())
        survey = await seq.survey(segments)
        facts = [
            replace(f, verdict=replace(f.verdict, shareable=True)) if f.verdict else f
            for f in survey.facts
        ]
        plan = Kvcomm().plan(facts)
        done = await seq.extend(survey.segments, plan.steps, answer=answer(1))
        await decode(seq)
        assert seq._decoding is not None
        return seq._decoding.logits, done, seq.exact

    return asyncio.run(go())


@pytest.mark.parametrize("shape", TINY)
def test_offsets_seen_before_make_a_realigned_call_equal_to_a_dense_one(
    engine_of: Callable[..., LocalEngine], shape: str
) -> None:
    # 72 tokens or so: three windows of the models that have one.
    engine = engine_of(f"random:{shape}", "float64")
    engine.forget()
    segments = asyncio.run(prompt_of(engine))
    logits, done, exact = realign_with(engine, segments, teach=segments)
    truth = dense_truth(engine, segments)
    assert not exact
    assert [d.way for d in done] == ["prefix", "realign", "realign", "realign", "realign"]
    # The message's last token has no KV, and the prompt's last token is always computed.
    assert [d.computed for d in done] == [0, 0, 0, 1, 1]
    assert torch.allclose(logits, truth, rtol=0, atol=1e-6 * float(truth.abs().max()))


def test_offsets_of_another_prompt_are_an_approximation(tiny: LocalEngine) -> None:
    segments = asyncio.run(prompt_of(tiny))
    other = TEMPLATE.fill(
        {"task": tuple(random_ids(tiny, 17, seed=30)), "critic": segments[3].ids},
        {"critic": segments[3].handle},  # type: ignore[dict-item]
    )
    logits, _, _ = realign_with(tiny, segments, teach=other)
    truth = dense_truth(tiny, segments)
    assert not torch.allclose(logits, truth, rtol=0, atol=1e-3 * float(truth.abs().max()))


def test_of_a_realigned_row_only_the_exact_start_enters_the_prefix_cache(tiny: LocalEngine) -> None:
    segments = asyncio.run(prompt_of(tiny))
    realign_with(tiny, segments, teach=segments)

    async def go() -> None:
        seq = tiny.open(call(feeds_prefix=True))
        survey = await seq.survey(segments)
        steps = [COMPUTE, *[Step("realign", "test", ()) for _ in segments[1:]]]
        await seq.extend(survey.segments, steps, answer=answer(20))
        await seq.settle()
        assert not seq.exact
        held = tiny.prefix.match([i for s in segments for i in s.ids])
        assert held is not None
        assert held[1] == len(segments[0])
        with pytest.raises(ValueError, match="computed"):
            await seq.observe([1])

    asyncio.run(go())


def test_kv_that_has_left_the_store_is_computed_and_the_reason_says_so(tiny: LocalEngine) -> None:
    segments = asyncio.run(prompt_of(tiny))

    async def go() -> list[int]:
        seq = tiny.open(call())
        survey = await seq.survey(segments)
        for item in survey.segments:
            if item.handle:
                tiny.store.drop(item.handle.key)
        steps = [COMPUTE, *[Step("realign", "planned", ()) for _ in segments[1:]]]
        done = await seq.extend(survey.segments, steps, answer=answer(20))
        assert all(d.realigned == 0 for d in done)
        assert "left the store" in done[1].reason
        assert seq.exact
        return ids_of(await decode(seq))

    assert asyncio.run(go()) == generate(tiny, whole(segments), 20)


def test_bases_are_made_once_and_counted_once(tiny: LocalEngine) -> None:
    segments = asyncio.run(prompt_of(tiny))

    async def go() -> list[int]:
        surveys = await asyncio.gather(*[tiny.open(call()).survey(segments) for _ in range(3)])
        return [survey.base_tokens for survey in surveys]

    costs = asyncio.run(go())
    header = len(tiny.codec.encode_structured(tiny.codec.chat("", "x"))[0])
    assert sorted(costs)[:2] == [0, 0] or sum(costs) < 2 * max(costs)
    literals = TEMPLATE.literal_tokens()
    assert literals + 17 < sum(costs) < literals + 17 + header


def test_a_closed_row_is_freed_at_once(tiny: LocalEngine) -> None:
    """Without the garbage collector: it does not know how large a row is."""

    async def go() -> list[weakref.ref[Slab]]:
        slabs = []
        seq = tiny.spare(call(reads_prefix=False, capacity=100))
        assert isinstance(seq, LocalSequence)
        await seq.extend([segment(random_ids(tiny, 30))], [COMPUTE], answer=answer(5))
        slabs.append(weakref.ref(seq._row.slab))
        ids = ids_of(await decode(seq))
        message = Outgoing("text", tuple(ids), (Span(0, 0, len(ids)),))
        handle = await seq.publish(message, [0])
        await seq.close()
        assert handle is not None
        kv = tiny.store.get(handle.key)
        assert kv is not None
        assert len(kv) == 4  # the message outlives its row
        await tiny.release(handle, 0)
        return slabs

    gc.disable()
    try:
        slabs = asyncio.run(go())
        asyncio.run(tiny.quiet())
        assert [ref() for ref in slabs] == [None]
    finally:
        gc.enable()


def test_a_row_is_given_back_though_its_closing_is_cancelled(tiny: LocalEngine) -> None:
    """As when the event loop ends: closing waits for the engine to copy the message."""

    async def go() -> None:
        seq = tiny.spare(call(reads_prefix=False, capacity=100))
        assert seq is not None
        await seq.extend([segment(random_ids(tiny, 30))], [COMPUTE], answer=answer(5))
        ids = ids_of(await decode(seq))
        handle = await seq.publish(Outgoing("text", tuple(ids), (Span(0, 0, len(ids)),)), [0])
        assert handle is not None
        busy = threading.Event()
        tiny.loop.submit(busy.wait)
        try:
            closing = asyncio.create_task(seq.close())
            await asyncio.sleep(0.01)
            assert tiny.room.used > 0
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert tiny.room.used == 0
        finally:
            busy.set()
        await tiny.release(handle, 0)

    asyncio.run(go())
