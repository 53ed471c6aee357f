"""Query-aware repair: what a prompt attends to of realigned texts, and what is computed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from kvcomm.engine.base import BACKGROUND, CallSpec, Extended
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.attention import NAME
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.engine.local.watch import Watch
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.attended import best, by_attention
from kvcomm.reuse.recipe import QUERY_AWARE, Realign
from tests.engine.support import (
    DENSE,
    Forwards,
    answer,
    answered,
    close,
    fill,
    first_logits,
    opened,
    plain_logits,
    random_ids,
    spec,
    whole,
)
from tests.support import POSITIONS, shapes

Engines = Callable[..., LocalEngine]
SIZES = {"one": 90, "two": 70}
PASSAGES = Template(
    (tuple(range(20, 32)), (60, 61), tuple(range(70, 78))), ("one", "two"), "template of passages"
)
# Another prompt that has read the same texts.
LENDER = Template((tuple(range(30, 50)), (5, 6, 7), (9,)), ("two", "one"), "another template")


def prompt(engine: LocalEngine, template: Template = PASSAGES) -> list[Segment]:
    ids = {name: tuple(random_ids(engine, size, size)) for name, size in SIZES.items()}
    return template.fill(ids)


async def lend(engine: LocalEngine) -> None:
    """Have another prompt read the passages."""
    segments = prompt(engine, LENDER)
    call = spec(400, template=LENDER, shares=True)
    seq = opened(engine, call)
    await seq.extend(segments, DENSE, last=answer(1))
    await answered(seq)
    await seq.close()


async def read(
    engine: LocalEngine, share: float = 0.2, **changes: object
) -> tuple[LocalSequence, Extended]:
    recipe = replace(QUERY_AWARE, pooled=share, **changes)  # type: ignore[arg-type]
    policy = Realign(recipe, borrows=True)
    segments = prompt(engine)
    seq, done = await fill(
        engine,
        segments,
        policy,
        answer(1, record=True),
        template=PASSAGES,
        messages=frozenset(),
        capacity=400,
    )
    await answered(seq)
    return seq, done


# --- the attention that is seen ---


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
async def test_what_is_seen_is_the_models_own_attention(engine_of: Engines, shape: str) -> None:
    """Against transformers' eager attention, with windows where the model has them."""
    engine = engine_of(f"random:{shape}", "float64")
    engine.forget()
    ids = random_ids(engine, 80, 3)
    seq = opened(engine, CallSpec("n", PASSAGES, 100))
    slots, begin = [*range(5, 20), *range(30, 50)], 60
    watch = Watch(slots, begin)
    await _watched(engine, seq, ids, watch)
    model = engine.network
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(NAME)
    weights = torch.stack([layer[0] for layer in out.attentions[1:]])  # [layers - 1, heads, q, k]
    expected = weights[:, :, begin:, slots].amax(dim=2).sum(dim=(0, 1))
    assert watch.total() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


async def _watched(
    engine: LocalEngine, seq: LocalSequence, ids: Sequence[int], watch: Watch
) -> None:
    """Compute ids in two pieces, and watch."""
    from kvcomm.engine.local.attention import Pack, Part, packed_forward

    seq.state.buffer = engine._new_buffer(len(ids))
    with torch.inference_mode():
        for positions in (range(64), range(64, len(ids))):
            part = Part(seq.state.kv, 0, positions, watch=watch)
            packed_forward(engine.network, ids[positions.start :][: len(positions)], positions,
                           [], Pack([part]))  # fmt: skip


# --- what is computed ---


async def test_the_tokens_that_the_question_attends_to_are_computed(tiny: LocalEngine) -> None:
    """Chosen as by hand: from a prompt all of whose passages are only rotated."""
    await lend(tiny)
    seq, done = await read(tiny, 0.2)
    one, two = (usage for usage in done.segments if usage.kind == "placeholder")
    assert one.computed + two.computed == round(0.2 * 160)
    assert one.base == two.base == "borrowed"
    # The lender's own prompt is exact, so its passages may lend; ours is not.
    assert not seq.exact
    begins = {s.index: sum(len(o) for o in prompt(tiny)[: s.index]) for s in prompt(tiny)}
    slots = [begins[1] + i for i in range(90)] + [begins[3] + i for i in range(70)]
    attention = await _attention(tiny, slots, begins[4])
    scores = by_attention([attention[:90], attention[90:]])
    expected = best(scores, [set(range(90)), set(range(70))], 32)
    assert [set(one.positions), set(two.positions)] == expected
    # What is computed twice: what stands behind the first passage, both literals.
    assert done.query_tokens == 2 + 8


async def _attention(engine: LocalEngine, slots: list[int], begin: int) -> list[float]:
    """By a sequence whose passages are rotated, and whose literals are computed over them."""
    seq, _ = await fill(
        engine,
        prompt(engine),
        Realign(replace(QUERY_AWARE, pooled=0.0, query=False), borrows=True, budget=0.0),
        answer(1, record=True),
        template=PASSAGES,
        messages=frozenset(),
        capacity=400,
    )
    await answered(seq)
    from kvcomm.engine.local.attention import Pack, Part, packed_forward

    watch = Watch(slots, begin)
    ids = whole(prompt(engine))
    with torch.inference_mode():
        part = Part(seq.state.kv, 0, range(begin, len(ids)), watch=watch)
        packed_forward(engine.network, ids[begin:], range(begin, len(ids)), [], Pack([part]))
    return watch.total()


async def test_a_prompt_all_of_which_is_computed_is_dense(tiny: LocalEngine) -> None:
    """The second pass writes over the first: nothing of it is left."""
    await lend(tiny)
    segments = prompt(tiny)
    policy = Realign(replace(QUERY_AWARE, pooled=0.2), borrows=True)

    class Everything:
        name, options, leading = policy.name, policy.options, policy.leading

        def plan(self, facts):  # type: ignore[no-untyped-def]
            plan = policy.plan(facts)
            return replace(plan, chosen=160)

    made = {"template": PASSAGES, "messages": frozenset[str](), "capacity": 400}
    seq, done = await fill(tiny, segments, Everything(), answer(1, record=True), **made)  # type: ignore[arg-type]
    await answered(seq)
    assert sum(usage.realigned for usage in done.segments) == 0
    assert close(first_logits(seq), plain_logits(tiny, whole(segments))[-1], 1e-9)


async def test_it_takes_two_forwards_and_the_first_one_no_logits(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lend(tiny)
    forwards = Forwards(monkeypatch)
    _, done = await read(tiny)
    first = len(PASSAGES.literals[0])
    # The opening once, and what stands behind the first passage twice.
    assert forwards.sizes == [first + 10, 10 + 32]
    assert sum(usage.computed for usage in done.segments) == first + 10 + 32


async def test_a_long_question_is_not_asked(tiny: LocalEngine) -> None:
    """It would be computed twice: more leading tokens are, and there is no second pass."""
    await lend(tiny)
    segments = prompt(tiny)
    segments[-1] = replace(segments[-1], ids=tuple(random_ids(tiny, 40, 1)))
    made = {"template": PASSAGES, "messages": frozenset[str](), "capacity": 400}
    policy = Realign(replace(QUERY_AWARE, pooled=0.2), borrows=True)
    seq, done = await fill(tiny, segments, policy, answer(1), **made)  # type: ignore[arg-type]
    await answered(seq)
    one, two = (usage for usage in done.segments if usage.kind == "placeholder")
    assert done.query_tokens == 0
    assert one.computed + two.computed == round(0.3 * 160)
    assert one.positions == tuple(range(24))
    assert "30% of 160 tokens, leading" in one.reason


async def test_an_audit_counts_both_passes(tiny: LocalEngine) -> None:
    await lend(tiny)
    policy = Realign(replace(QUERY_AWARE, pooled=0.2), borrows=True)
    call = spec(400, template=PASSAGES, priority=BACKGROUND, reuse=policy.options)
    from kvcomm.engine.base import Variant

    found = await tiny.evaluate(call, prompt(tiny), [Variant(policy)])
    (compared,) = found.variants
    assert compared.divergence is not None
    assert compared.tokens == len(PASSAGES.literals[0]) + 10 + 32 + 10
