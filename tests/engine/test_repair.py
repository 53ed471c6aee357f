"""Repair: deviating positions, predicted and measured, and the comparison of two rows."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from kvcomm.engine.attention import NAME
from kvcomm.engine.base import Answer, Call, Extended
from kvcomm.engine.check import cache_name
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.sequence import LocalSequence
from kvcomm.message import Outgoing, Span
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step
from kvcomm.sampling import Sampling
from tests.engine.support import COMPUTE, decode, random_ids
from tests.support import TINY

Engines = Callable[..., LocalEngine]

HEAD, TEXT, TAIL = 24, 40, 6
TEMPLATE = Template(
    (tuple(range(20, 20 + HEAD)), tuple(range(90, 90 + TAIL))), ("text",), "repair-test"
)
GREEDY = Answer(Sampling(max_tokens=32), record=True)
AT = HEAD  # where the text begins


def call(**changes: object) -> Call:
    made = Call(
        node="n",
        template=TEMPLATE,
        capacity=HEAD + TEXT + TAIL + 40,
        messages=frozenset(),
        reads_prefix=False,
        feeds_prefix=False,
        offsets="linear",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def prompt(engine: LocalEngine, seed: int = 3) -> list[Segment]:
    return TEMPLATE.fill({"text": tuple(random_ids(engine, TEXT, seed=seed))})


async def dense_row(engine: LocalEngine, segments: list[Segment]) -> LocalSequence:
    seq = engine.open(call())
    assert isinstance(seq, LocalSequence)
    await seq.extend(segments, [COMPUTE] * 3, answer=GREEDY)
    await decode(seq)
    return seq


async def realigned(
    engine: LocalEngine, segments: list[Segment], step: Step
) -> tuple[LocalSequence, list[Extended]]:
    seq = engine.open(call())
    assert isinstance(seq, LocalSequence)
    survey = await seq.survey(segments, literals=False)
    done = await seq.extend(survey.segments, [COMPUTE, step, COMPUTE])
    return seq, done


def rotated(*positions: int) -> Step:
    return Step("realign", "test", positions, corrected=False)


# --- compare ---


async def test_a_computed_row_is_dense(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    other = tiny.open(call())
    await other.extend(segments, [COMPUTE] * 3)
    found = await other.compare(dense)
    assert found.mean < 1e-12
    assert found.first < 1e-12
    assert found.top1 == 1
    assert found.same_text


def reference(engine: LocalEngine, seq: LocalSequence, fed: list[int]) -> torch.Tensor:
    """Logits behind the prompt's last token and `fed`, by transformers from a copy of the KV."""
    length = HEAD + TEXT + TAIL - 1
    cache = DynamicCache()
    for layer in range(engine.config.num_hidden_layers):
        keys, values = (
            part[layer][None, :, :length].clone()
            for part in (seq._row.slab.keys, seq._row.slab.values)
        )
        cache.update(keys, values, layer)
    engine.network.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            ids = [seq._row.ids[length], *fed]
            out = engine.network(
                input_ids=torch.tensor([ids]),
                position_ids=torch.arange(length, length + len(ids))[None],
                **{cache_name(engine.network): cache},
            )
    finally:
        engine.network.set_attn_implementation(NAME)
    logits: torch.Tensor = out.logits[0]
    return logits


async def test_divergence_is_kl_along_denses_tokens(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    seq, _ = await realigned(tiny, segments, rotated())
    found = await seq.compare(dense)

    assert dense._decoding is not None
    assert dense._decoding.record is not None
    wanted = dense._decoding.record
    fed = dense._row.ids[HEAD + TEXT + TAIL :][: len(wanted) - 1]
    logits = reference(tiny, seq, fed)
    divergences, same = [], []
    for p_row, q_row in zip(wanted, logits, strict=True):
        p = torch.softmax(p_row, 0).tolist()
        q = torch.softmax(q_row, 0).tolist()
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
        same.append(p.index(max(p)) == q.index(max(q)))
    assert found.mean == pytest.approx(statistics.fmean(divergences[:24]), rel=1e-6)
    assert found.first == pytest.approx(divergences[0], rel=1e-6)
    assert found.top1 == pytest.approx(statistics.fmean(same[:24]))
    assert found.same_text == all(same[:32])
    assert found.mean > 1e-4  # the model is random, but not that random


async def test_comparing_leaves_the_row_as_it_was(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    seq = tiny.open(call())
    assert isinstance(seq, LocalSequence)
    survey = await seq.survey(segments, literals=False)
    sampled = Answer(Sampling(max_tokens=8, temperature=1.0), seed=5)
    await seq.extend(survey.segments, [COMPUTE, rotated(), COMPUTE], answer=sampled)
    await decode(seq)
    ids, keys = list(seq._row.ids), seq._row.slab.keys[:, :, : len(seq._row)].clone()
    await seq.compare(dense)
    assert seq._row.ids == ids
    assert torch.equal(seq._row.slab.keys[:, :, : len(ids)], keys)


async def test_others_read_a_row_meanwhile_as_it_was(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message, first asked for while it is compared, and its prefix."""
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    seq = tiny.open(call(feeds_prefix=True, namespace="compared"))
    assert isinstance(seq, LocalSequence)
    sampled = Answer(Sampling(max_tokens=8, temperature=1.0), seed=5)
    await seq.extend(segments, [COMPUTE] * 3, answer=sampled)
    ids = [token.id for token in await decode(seq)][:7]
    await seq.settle()
    handle = await seq.publish(Outgoing("text", tuple(ids), (Span(0, 0, len(ids)),)), [0])
    assert handle is not None
    said = range(HEAD + TEXT + TAIL, HEAD + TEXT + TAIL + len(ids))
    expected = seq._row.position_free(said)
    forward, read = tiny.loop._forward, []

    def reading(*args: Any) -> None:
        forward(*args)
        read.append(tiny.store.get(handle.key))
        found = tiny.prefix.match(seq._row.ids[: HEAD + TEXT], "compared")
        assert found is None or found[0] is not seq._row.slab

    monkeypatch.setattr(tiny.loop, "_forward", reading)
    await seq.compare(dense)
    assert read
    for kv in read:
        assert torch.equal(kv.keys, expected.keys)
        assert torch.equal(kv.values, expected.values)
    known = [*range(20, 20 + HEAD), *segments[1].ids]
    assert tiny.prefix.match(known, "compared") == (seq._row.slab, len(known))
    await tiny.release(handle, 0)
    await seq.close()


async def test_a_comparison_that_is_cancelled_puts_the_row_back(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    seq, _ = await realigned(tiny, segments, rotated())
    ids, keys = list(seq._row.ids), seq._row.slab.keys[:, :, : len(seq._row)].clone()
    forward, began = tiny.loop._forward, asyncio.Event()
    running = asyncio.get_running_loop()

    def half(due: Any, chunks: Any) -> None:
        forward(due, [(work, chunk[: len(chunk) // 2]) for work, chunk in chunks])
        running.call_soon_threadsafe(began.set)

    monkeypatch.setattr(tiny.loop, "_forward", half)
    comparing = asyncio.ensure_future(seq.compare(dense))
    await began.wait()
    comparing.cancel()
    await asyncio.gather(comparing, return_exceptions=True)
    assert comparing.cancelled()
    assert seq._row.ids == ids
    assert torch.equal(seq._row.slab.keys[:, :, : len(ids)], keys)


async def test_a_row_without_room_for_denses_tokens_is_compared(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    wide, _ = await realigned(tiny, segments, rotated())
    tight = tiny.open(call(capacity=HEAD + TEXT + TAIL))
    survey = await tight.survey(segments, literals=False)
    await tight.extend(survey.segments, [COMPUTE, rotated(), COMPUTE])
    assert await tight.compare(dense) == await wide.compare(dense)


async def test_a_record_is_as_long_as_texts_are_compared(tiny: LocalEngine) -> None:
    seq = tiny.open(call(capacity=200))
    assert isinstance(seq, LocalSequence)
    answer = Answer(Sampling(max_tokens=60), record=True)
    await seq.extend(prompt(tiny), [COMPUTE] * 3, answer=answer)
    count = len(await decode(seq))
    assert seq._decoding is not None
    assert len(seq._decoding.record or ()) == min(count, 32)


# --- deviating positions ---


async def test_predicted_deviation_is_the_size_of_the_offset(tiny: LocalEngine) -> None:
    for seed in range(10, 16):
        lesson = prompt(tiny, seed)
        teacher = await dense_row(tiny, lesson)
        await teacher.survey(lesson, literals=False)
        await teacher.observe([1])
    segments = prompt(tiny)
    step = Step("realign", "test", (0,), 5)
    seq, done = await realigned(tiny, segments, step)
    base = tiny.store.get(seq._realigner.segments[1].handle.key)  # type: ignore[union-attr]
    assert base is not None
    offset = seq._realigner.model(1).predict(base)
    sizes = []
    for token in range(TEXT):
        size = 0.0
        for layer in range(1, offset.keys.shape[0]):
            for part in (offset.keys, offset.values):
                whole = float(part[layer].square().sum())
                size += float(part[layer, :, token].square().sum()) / whole
        sizes.append(size)
    largest = sorted(range(1, TEXT), key=lambda token: -sizes[token])[:5]
    assert done[1].positions == tuple(sorted([0, *largest]))
    assert done[1].computed == 6
    assert done[1].corrected


@pytest.mark.parametrize("shape", TINY)
async def test_first_layers_are_true_and_show_what_deviates(engine_of: Engines, shape: str) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    segments = prompt(engine)
    dense = await dense_row(engine, segments)
    seq = engine.open(call())
    assert isinstance(seq, LocalSequence)
    survey = await seq.survey(segments, literals=False)
    (_, none), (text, found), (_, last) = await dense.with_first_layers(survey.segments, 2)
    assert none == last == ()  # literals have no base KV here
    handle = survey.segments[1].handle
    assert handle is not None
    base = engine.store.get(handle.key)
    assert base is not None
    true = dense._row.position_free(range(AT, AT + TEXT))
    for token in range(TEXT):
        keys = true.keys[1, :, token] - base.keys[1, :, token]
        values = true.values[1, :, token] - base.values[1, :, token]
        expected = float(keys.square().sum() + values.square().sum())
        assert found[token] == pytest.approx(expected, rel=1e-5)
    await seq.extend([segments[0], text, segments[2]], [COMPUTE, rotated(), COMPUTE])
    for name in ("keys", "values"):
        mine, right = getattr(seq._row.slab, name), getattr(dense._row.slab, name)
        assert torch.allclose(mine[:2, :, : AT + TEXT], right[:2, :, : AT + TEXT], atol=1e-6)
        assert not torch.allclose(mine[2, :, AT : AT + TEXT], right[2, :, AT : AT + TEXT])


async def test_repair_helps(smol: LocalEngine) -> None:
    """On a trained model computing what deviates brings the row nearer to dense."""
    text = "A train leaves at 9:40 and arrives at 11:05. How long is the journey, in minutes? " * 2
    ids = tuple(smol.codec.encode(text))
    template = Template(
        tuple(tuple(smol.codec.encode(part)) for part in ("You check numbers. ", " Answer:")),
        ("text",),
        "repair-smol",
    )
    segments = template.fill({"text": ids})
    room = call(template=template, capacity=len(ids) + 80)
    dense = smol.open(room)
    await dense.extend(segments, [COMPUTE] * 3, answer=GREEDY)
    await decode(dense)  # type: ignore[arg-type]
    found = []
    for measured in (False, True):
        seq, step = smol.open(room), rotated()
        told = list((await seq.survey(segments, literals=False)).segments)
        if measured:
            assert isinstance(dense, LocalSequence)
            told[1], sizes = (await dense.with_first_layers(told, 3))[1]
            worst = sorted(range(4, len(ids)), key=lambda token: -sizes[token])
            step = rotated(*sorted([0, 1, 2, 3, *worst[: len(ids) // 4]]))
        await seq.extend(told, [COMPUTE, step, COMPUTE])
        found.append((await seq.compare(dense)).mean)
    assert found[1] < 0.7 * found[0]


# --- what a row still knows ---


async def test_a_realigned_row_offers_what_is_exact_in_it(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    seq = tiny.open(call(feeds_prefix=True, reads_prefix=True))
    survey = await seq.survey(segments, literals=False)
    await seq.extend(survey.segments, [COMPUTE, rotated(0, 1, 2), COMPUTE])
    await seq.settle()
    assert not seq.exact
    match = tiny.prefix.match([i for s in segments for i in s.ids])
    assert match is not None
    assert match[1] == HEAD + 3  # the literal and the computed start; nothing realigned
    facts = (await tiny.open(call(reads_prefix=True)).survey(segments)).facts
    assert [fact.prefix for fact in facts] == [HEAD, 3, 0]


async def test_learning_waits_for_calls_on_their_way_to_a_first_token(tiny: LocalEngine) -> None:
    segments = prompt(tiny)
    dense = await dense_row(tiny, segments)
    await dense.survey(segments, literals=False)
    other = tiny.open(call(capacity=2000))
    long = [Segment("placeholder", "text", tuple(random_ids(tiny, 1500, seed=4)))]
    order: list[str] = []

    async def extend() -> None:
        await other.extend(long, [COMPUTE], settle=False)
        order.append("computed")

    async def learn() -> None:
        await asyncio.sleep(0.002)
        await dense.observe([1])
        order.append("learned")

    await asyncio.gather(extend(), learn())
    assert order == ["computed", "learned"]
    assert (await tiny.outlook(call()))["text"].samples == 1
