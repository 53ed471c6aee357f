"""Shadow evaluations: variants of a prompt compared with dense, and nothing left of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache

from kvcomm.engine.base import Variant
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.attention import NAME
from kvcomm.engine.local.check import cache_name
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.engine.segments import READ, text_key
from kvcomm.errors import KvcommError
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.policy import Dense, ReuseOptions
from kvcomm.reuse.recipe import Realign, Recipe
from tests.engine.support import (
    DENSE,
    TEMPLATE,
    Given,
    answer,
    answered,
    close,
    corrected,
    fill,
    first_logits,
    on_thread,
    opened,
    prompt_of,
    rotated,
    spec,
    whole,
)
from tests.support import shapes

Engines = Callable[..., LocalEngine]
CALL = spec(template=TEMPLATE, messages=frozenset({"critic"}))
ROTATED = Given({1: rotated(), 3: rotated(13)})
CORRECTED = Given({1: corrected()}, offsets="linear")


async def teach(engine: LocalEngine, seed: int) -> None:
    """One observation of the input's offset."""
    learner = Given(learn=(1,), offsets="linear")
    seq, _ = await fill(engine, await prompt_of(engine, seed), learner, answer(1))
    await answered(seq)
    await seq.finish()
    await seq.close()
    await engine.drain()


async def test_a_computed_prompt_is_dense(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    found = await tiny.evaluate(CALL, segments, [Variant(DENSE)], distinct=False)
    (computed,) = found.variants
    assert (computed.divergence is not None, computed.dense) == (True, True)
    assert computed.divergence.mean < 1e-12
    assert (computed.divergence.top1, computed.divergence.same_text) == (1, True)
    assert computed.tokens == len(whole(segments))


def reference(engine: LocalEngine, seq: LocalSequence, fed: list[int]) -> torch.Tensor:
    """Logits behind the prompt's last token and `fed`, by transformers from a copy of the KV."""
    length = seq.state.prompt - 1
    cache = DynamicCache()
    for layer in range(engine.config.num_hidden_layers):
        parts = (seq.state.kv.keys, seq.state.kv.values)
        keys, values = (part[layer][None, :, :length].clone() for part in parts)
        cache.update(keys, values, layer)
    engine.network.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            ids = [seq.state.ids[length], *fed]
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
    """And that of an evaluation is that of the call that was really made."""
    segments = await prompt_of(tiny)
    dense, _ = await fill(tiny, segments, DENSE, answer(60, record=True))
    count = len(await answered(dense))
    seq, _ = await fill(tiny, segments, ROTATED, answer(1))
    await answered(seq)
    assert dense.state.answering is not None
    wanted = dense.state.answering.record
    assert wanted is not None
    assert len(wanted) == min(count, 32)
    fed = dense.state.ids[dense.state.prompt :][: len(wanted) - 1]
    logits = reference(tiny, seq, fed)
    divergences, same = [], []
    for p_row, q_row in zip(wanted, logits, strict=True):
        p, q = torch.softmax(p_row, 0).tolist(), torch.softmax(q_row, 0).tolist()
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
        same.append(p.index(max(p)) == q.index(max(q)))
    found = (await tiny.evaluate(CALL, segments, [Variant(ROTATED)])).variants[0].divergence
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(divergences[:24]), rel=1e-6)
    assert found.first == pytest.approx(divergences[0], rel=1e-6)
    assert found.top1 == pytest.approx(statistics.fmean(same[:24]))
    assert found.same_text == all(same[:32])
    assert found.mean > 1e-4  # the model is random, but not that random


async def test_an_earlier_moment_gives_the_logits_of_then(tiny: LocalEngine) -> None:
    """Although the offset models have learned since."""
    for seed in (20, 21, 22):
        await teach(tiny, seed)
    segments = await prompt_of(tiny)
    seq, _ = await fill(tiny, segments, CORRECTED, answer(1, record=True))
    await answered(seq)
    then, moment = first_logits(seq), seq.moment
    await seq.close()
    variants = [Variant(CORRECTED, moment), Variant(CORRECTED)]
    before = await tiny.evaluate(CALL, segments, variants, distinct=False)
    for seed in (23, 24):
        await teach(tiny, seed)
    found = []
    spec(template=TEMPLATE, reuse=CORRECTED.options, messages=CALL.messages)
    for at in (moment, None):
        again = opened(
            tiny, spec(template=TEMPLATE, reuse=CORRECTED.options, messages=CALL.messages)
        )
        await again.extend(segments, CORRECTED, last=answer(1, record=True), at=at)
        await answered(again)
        found.append(close(first_logits(again), then, 1e-12))
        await again.close()
    assert found == [True, False]
    after = await tiny.evaluate(CALL, segments, variants, distinct=False)
    assert before.variants[0].divergence == before.variants[1].divergence
    assert after.variants[0].divergence == before.variants[0].divergence
    assert after.variants[1].divergence != before.variants[1].divergence


async def test_equal_plans_are_compared_once_and_dense_ones_not_at_all(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    variants = [Variant(DENSE), Variant(ROTATED), Variant(ROTATED), Variant(Given({1: rotated()}))]
    found = (await tiny.evaluate(CALL, segments, variants)).variants
    assert [one.divergence is None for one in found] == [True, False, False, False]
    assert found[1].divergence == found[2].divergence != found[3].divergence
    assert [one.tokens > 0 for one in found] == [False, True, False, True]


async def test_nothing_is_left_of_it_but_what_was_to_be_learned(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    known = await on_thread(tiny, lambda: set(tiny.segments._entries))
    prefixes = len(tiny.prefix)
    moved = Given({3: rotated(13)}, bases="borrowed")
    borrowed = Dense("reference", ReuseOptions(bases="borrowed"))
    options = {"reference": borrowed, "learn": ["linear"]}
    await tiny.evaluate(CALL, segments, [Variant(moved)], **options)
    await tiny.drain()
    read = text_key(tiny.fingerprint, "", segments[1].ids)
    entries = await on_thread(tiny, lambda: set(tiny.segments._entries))
    assert entries == known | {f"{read}.{READ}"}, "the input, as it was read"
    assert (len(tiny.prefix), tiny.admission.used) == (prefixes, 0)
    assert tiny.predictability(CALL, "linear")["critic"].samples == 1
    assert not len(tiny.lessons)


async def test_without_room_it_is_refused(limited: LocalEngine) -> None:
    segments = await prompt_of(limited)
    limited.budget.limit = 20 * limited.slot_bytes
    with pytest.raises(KvcommError, match="there is no room yet"):
        await limited.evaluate(CALL, segments, [Variant(ROTATED)])


# --- measured deviations ---


@pytest.mark.parametrize("shape", shapes("llama-tiny"))
async def test_first_layers_are_true_and_show_what_deviates(engine_of: Engines, shape: str) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    engine.forget()
    segments = await prompt_of(engine)
    dense, _ = await fill(engine, segments, DENSE)
    policy = Given({1: rotated()})
    seq = opened(engine, spec(template=TEMPLATE, reuse=policy.options, messages=CALL.messages))
    await seq.extend(segments, policy, measured=(dense, 2))
    start, tokens = len(segments[0]), len(segments[1])
    key = seq.state.placed[1].key
    assert key is not None
    base = engine.segments.get(key)
    assert base is not None
    true = dense.state.position_free(range(start, start + tokens))
    assert not policy.facts[0].deviations
    for token, found in enumerate(policy.facts[1].deviations):
        keys = true.keys[1, :, token] - base.keys[1, :, token]
        values = true.values[1, :, token] - base.values[1, :, token]
        expected = float(keys.square().sum() + values.square().sum())
        assert found == pytest.approx(expected, rel=1e-5)
    end = start + tokens
    for name in ("keys", "values"):
        mine, right = getattr(seq.state.kv, name), getattr(dense.state.kv, name)
        assert torch.allclose(mine[:2, :, :end], right[:2, :, :end], atol=1e-6)
        assert not torch.allclose(mine[2, :, start:end], right[2, :, start:end])


async def test_repair_helps(smol: LocalEngine) -> None:
    """On a trained model computing what deviates brings the prompt nearer to dense."""
    text = "A train leaves at 9:40 and arrives at 11:05. How long is the journey, in minutes? " * 2
    parts = ("You check numbers. ", " Answer:")
    literals = tuple(tuple(smol.codec.encode(part)) for part in parts)
    template = Template(literals, ("text",), "repair-smol")
    segments: list[Segment] = template.fill({"text": tuple(smol.codec.encode(text))})
    variants = [
        Variant(Realign(Recipe("rotate"))),
        Variant(Realign(Recipe("repair", first=4, deviating=0.25)), measured=3),
    ]
    found = await smol.evaluate(spec(template=template), segments, variants)
    plain, repaired = (one.divergence.mean for one in found.variants if one.divergence)
    assert repaired < 0.7 * plain
