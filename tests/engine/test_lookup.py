"""Base KV: who makes it, who borrows it, what is computed all the same, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from kvcomm.engine.base import AHEAD, Extended
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.bases import NOBODY
from kvcomm.engine.segments import ALONE, NO_ROOM, NOT_MADE, READ, text_key
from kvcomm.errors import OutOfMemory, StartOver
from kvcomm.kv.tiers import GONE
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import Kvcomm
from tests.engine.support import (
    DENSE,
    TEMPLATE,
    Forwards,
    Given,
    answer,
    answered,
    at_once,
    close,
    corrected,
    extend,
    fill,
    first_logits,
    generate,
    on_thread,
    open_seq,
    plain_logits,
    prompt_of,
    random_ids,
    rotated,
    said,
    whole,
)
from tests.support import POSITIONS, shapes

Engines = Callable[..., LocalEngine]
# The same input, in another context.
OTHER = Template((tuple(range(100, 120)), tuple(range(60, 69))), ("task",), "another template")
HEAD = len(TEMPLATE.literals[0])
TASK = 17


def input_of(engine: LocalEngine, template: Template = OTHER) -> list[Segment]:
    """A prompt with the input that `prompt_of` has, too."""
    return template.fill({"task": tuple(random_ids(engine, TASK, seed=9))})


def entries(engine: LocalEngine) -> set[str]:
    """As what that input is known."""
    text = text_key(engine.fingerprint, "", random_ids(engine, TASK, seed=9))
    return {context for context in (ALONE, READ) if f"{text}.{context}" in engine.segments}


# --- equal to dense ---


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
async def test_offsets_seen_before_make_a_realigned_call_equal_to_a_dense_one(
    engine_of: Engines, shape: str
) -> None:
    # 72 tokens or so: three windows of the models that have one.
    engine = engine_of(f"random:{shape}", "float64")
    engine.forget()
    segments = await prompt_of(engine)
    await taught(engine, segments)
    seq, done = await realigned(engine, segments)
    truth = plain_logits(engine, whole(segments))[-1]
    assert not seq.exact
    assert [usage.source for usage in done.segments] == ["compute", *["realign"] * 4]
    # The message's last token has no KV, and the prompt's last token is always computed.
    assert [usage.computed for usage in done.segments] == [HEAD, 0, 0, 1, 1]
    assert close(first_logits(seq), truth)


async def test_offsets_of_another_prompt_are_an_approximation(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    other = [
        replace(s, ids=tuple(random_ids(tiny, TASK, 30))) if s.index == 1 else s for s in segments
    ]
    await taught(tiny, other)
    seq, _ = await realigned(tiny, segments)
    assert not close(first_logits(seq), plain_logits(tiny, whole(segments))[-1], 1e-3)


OFFSETS = {"literals": True, "offsets": "anchors"}


async def taught(engine: LocalEngine, segments: Sequence[Segment], times: int = 2) -> None:
    """Teach the offsets of a prompt's placeholders."""
    for _ in range(times):
        seq, _ = await fill(engine, segments, Given(learn=(1, 3), **OFFSETS), answer(20))
        await answered(seq)
        await seq.finish()


async def realigned(engine: LocalEngine, segments: Sequence[Segment]):  # type: ignore[no-untyped-def]
    """A sequence with everything realigned that can be, answered by one token."""
    end = len(segments[-1]) - 1
    policy = Given({1: corrected(), 2: corrected(), 3: corrected(), 4: corrected(end)}, **OFFSETS)
    seq, done = await fill(engine, segments, policy, answer(1, record=True))
    await answered(seq)
    return seq, done


# --- one visit ---


async def test_an_extend_is_one_command(tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = await prompt_of(tiny)
    await on_thread(tiny)
    submitted: list[object] = []
    submit = tiny.core.submit
    monkeypatch.setattr(tiny.core, "submit", lambda c: (submitted.append(c), submit(c))[1])
    policy = Given({1: rotated(), 3: rotated()}, literals=True)
    seq, done = await fill(tiny, segments, policy, answer(4))
    assert len(submitted) == 1
    assert done.base_tokens > 0
    await said(seq)
    assert len(submitted) == 2  # to close it


async def test_a_policy_sees_all_there_is_to_know(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    await fill(tiny, segments[:1], Given(feeds_prefix=True))
    policy = Given(reads_prefix=True, **OFFSETS)
    _, done = await fill(tiny, segments, policy, answer(1))
    head, task, _, critic, tail = policy.facts
    assert (done.decision, done.dense, done.segments[0].source) == ("given", True, "prefix")
    assert (head.prefix, task.prefix) == (HEAD, 0)
    assert (task.covered, critic.covered) == (tuple(range(TASK)), tuple(range(13)))
    assert [fact.last for fact in policy.facts] == [False] * 4 + [True]
    assert (task.offset is not None, head.offset, tail.offset) == (True, None, None)
    assert all(fact.covered for fact in policy.facts)


async def test_a_plan_for_the_whole_prompt_comes_too_late_for_a_part(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    seq, _ = await fill(tiny, segments[:1], Kvcomm())
    with pytest.raises(StartOver):
        await seq.extend(segments[1:], Kvcomm(), last=answer(1))
    await seq.close()
    seq, done = await fill(tiny, segments, Kvcomm(), answer(8))
    assert done.decision.startswith("dense: {task}: ")
    assert await said(seq) == generate(tiny, whole(segments), 8)


async def test_a_policy_that_fails_fails_its_call(tiny: LocalEngine) -> None:
    class Broken(Given):
        def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
            raise ZeroDivisionError("no plan")

    segments = await prompt_of(tiny)
    with pytest.raises(ZeroDivisionError, match="no plan"):
        await fill(tiny, segments, Broken())
    seq, _ = await fill(tiny, segments, DENSE, answer(4))
    assert await said(seq) == generate(tiny, whole(segments), 4)


# --- base KV of a text alone ---


async def test_base_kv_is_made_once_and_counted_once(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    policy = Given(literals=True)
    made = await at_once(tiny, *[lambda: fill(tiny, segments, policy)] * 3)
    costs = [done.base_tokens for _, done in made]
    header = len(tiny.core._bases.header)
    assert sorted(costs) == [0, 0, TEMPLATE.literal_tokens() + header + TASK]
    assert entries(tiny) == {ALONE}


@pytest.fixture
def small(limited: LocalEngine) -> LocalEngine:
    """Room for a sequence of 120 tokens and little more."""
    return limited


async def done_in(engine: LocalEngine, tokens: int = TASK) -> tuple[Given, Extended]:
    """What a call with an input sees that has 120 tokens of room, and what became of it."""
    prompt = OTHER.fill({"task": tuple(random_ids(engine, tokens))})
    policy = Given({1: rotated()}, **OFFSETS)
    seq, done = await fill(engine, prompt, policy, answer(4), template=OTHER, capacity=120)
    assert seq.exact == (not done.segments[1].realigned)
    tokens_said = await said(seq)
    assert not seq.exact or tokens_said == generate(engine, whole(prompt), 4)
    assert await on_thread(engine, lambda: engine.admission.used) == 0
    return policy, done


@pytest.mark.parametrize("slots", [120, 140])
async def test_without_room_the_text_is_computed_and_the_reason_says_so(
    limited: LocalEngine, slots: int
) -> None:
    limited.budget.limit = slots * limited.slot_bytes
    policy, done = await done_in(limited)
    assert done.base_tokens == 0
    assert [(fact.covered, fact.absent) for fact in policy.facts] == [((), NO_ROOM)] * 3
    assert done.segments[1].reason == f"computed, {NO_ROOM}; planned: test"


async def test_what_the_cache_could_not_keep_is_not_made(limited: LocalEngine) -> None:
    """It has an eighth: room for the literals, and for no long text."""
    limited.budget.limit = 8 * 40 * limited.slot_bytes
    policy, done = await done_in(limited, 60)
    literal, task, _ = policy.facts
    assert literal.covered
    assert (task.covered, task.absent) == ((), NO_ROOM)
    assert done.base_tokens == OTHER.literal_tokens()


@pytest.mark.parametrize("how", ["memory", "forward"])
async def test_base_kv_that_cannot_be_made_is_done_without(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch, forwards: Forwards, how: str
) -> None:
    memory = limited.core._memory

    def scarce(capacity: int) -> object:
        if capacity != 120:
            raise OutOfMemory("opening a sequence")
        return memory.make(capacity)

    def fails(ids: list[int]) -> None:
        if len(forwards.sizes) == 1:
            raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        if how == "memory":
            patch.setattr(limited.core, "_memory", replace(memory, make=scarce))
        else:
            forwards.before = fails
        policy, done = await done_in(limited)
    absent = [fact.absent for fact in policy.facts]
    assert absent == [NO_ROOM if how == "memory" else NOT_MADE] * 3
    assert done.segments[1].computed == TASK
    _, again = await done_in(limited)
    assert again.segments[1].realigned == TASK


# --- base KV of another prompt ---


BORROWED = Given({1: rotated()}, bases="borrowed")


async def test_an_input_is_borrowed_from_the_prompt_that_read_it_first(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    reader, _ = await fill(tiny, segments, DENSE, shares=True)
    seq, done = await fill(tiny, input_of(tiny), BORROWED, answer(8), template=OTHER)
    task = done.segments[1]
    assert (task.realigned, task.base, done.base_tokens) == (TASK, "borrowed", 0)
    assert task.lender == reader.state.call.node
    assert task.reason == f"test; KV from the prompt of {reader.state.call.node}"
    truth = reader.state.position_free(range(HEAD, HEAD + TASK))
    (context,) = entries(tiny)
    text = text_key(tiny.fingerprint, "", random_ids(tiny, TASK, seed=9))
    kept = tiny.segments.get(f"{text}.{context}")
    assert kept is not None
    assert torch.equal(kept.values, truth.values)
    assert torch.equal(kept.keys, truth.keys)
    assert await said(seq) != generate(tiny, whole(input_of(tiny)), 8)
    await reader.close()
    seq, done = await fill(tiny, input_of(tiny), BORROWED, template=OTHER)
    assert done.segments[1].realigned == TASK, "it outlives its reader"


async def test_of_several_prompts_the_mean_is_borrowed_without_ones_own_alone(
    tiny: LocalEngine,
) -> None:
    """Each prompt that has read the text in another context counts once, when it is learned."""
    text = text_key(tiny.fingerprint, "", random_ids(tiny, TASK, seed=9))
    kvs = []
    for number in range(3):
        template = replace(OTHER, literals=((*range(40 + number, 50),), (1, 2)))
        for _ in range(2):
            seq, _ = await fill(
                tiny, input_of(tiny, template), DENSE, answer(1), template=template, shares=True
            )
            await answered(seq)
            await seq.finish(input_of(tiny, template), "linear")
            start = seq.state.placed[1].start
            if len(kvs) == number:
                kvs.append(seq.state.position_free(range(start, start + TASK)))
            await tiny.drain()
    kept = tiny.segments.get(f"{text}.{READ}")
    assert kept is not None
    assert kept.spread is not None
    for part, spread in (("keys", kept.spread[0]), ("values", kept.spread[1])):
        every = torch.stack([getattr(kv, part) for kv in kvs])
        mean = every.mean(dim=0)
        assert torch.allclose(getattr(kept, part), mean)
        assert torch.allclose(spread, (every - mean).square().sum(dim=(0, 2, 4)))
    seq, done = await fill(tiny, input_of(tiny), BORROWED, template=OTHER)
    assert done.segments[1].base == "mean"
    assert done.segments[1].reason == "test; KV: mean of 3 prompts"
    assert tiny.bases(seq.state.call, {"task": random_ids(tiny, TASK, seed=9), "x": [1]}) == {
        "task": "mean"
    }


@pytest.mark.parametrize("case", ["own context", "not shared", "a message", "namespace"])
async def test_what_is_not_borrowed_is_computed(tiny: LocalEngine, case: str) -> None:
    """Its own context would be a prefix; behind a message that is realigned nothing is exact."""
    segments = await prompt_of(tiny)
    first, template = BORROWED, TEMPLATE
    shares = {"shares": case != "not shared", "namespace": "x" if case == "namespace" else ""}
    if case == "a message":  # the input stands behind it
        segments = [
            segments[0],
            replace(segments[3], index=1),
            segments[2],
            replace(segments[1], index=3),
        ]
        first = Given({1: rotated(13)}, bases="borrowed")
    template = replace(TEMPLATE, names=("critic", "task")) if case == "a message" else TEMPLATE
    await fill(tiny, segments, first, template=template, **shares)
    later = (segments, template) if case == "own context" else (input_of(tiny), OTHER)
    _, done = await fill(tiny, later[0], BORROWED, template=later[1])
    task = next(usage for usage in done.segments if usage.name == "task")
    assert (task.realigned, task.base) == (0, None)
    assert task.reason == f"computed, {NOBODY}; planned: test"


async def test_who_needs_what_is_being_computed_waits_for_it(
    tiny: LocalEngine, forwards: Forwards
) -> None:
    segments = await prompt_of(tiny)
    forwards.sizes.clear()
    (reader, _), (_, done) = await at_once(
        tiny,
        lambda: fill(tiny, segments, DENSE, shares=True),
        lambda: fill(tiny, input_of(tiny), BORROWED, template=OTHER),
    )
    assert done.segments[1].lender == reader.state.call.node
    assert forwards.sizes == [len(whole(segments)), OTHER.literal_tokens()]


async def test_work_ahead_that_somebody_ready_waits_for_is_as_urgent_as_that(
    limited: LocalEngine, forwards: Forwards
) -> None:
    segments = await prompt_of(limited)
    limited.runner.limit = 40
    forwards.sizes.clear()
    other = open_seq(limited, 100)
    (reader, _), (_, done), _ = await forwards.during(
        lambda: fill(limited, segments, DENSE, shares=True, priority=AHEAD),
        lambda: fill(limited, input_of(limited), BORROWED, template=OTHER),
        lambda: extend(other, random_ids(limited, 35)),
    )
    assert done.segments[1].lender == reader.state.call.node
    # The reader's last 31 share the second step with the first of the other one.
    assert (len(whole(segments)), forwards.sizes) == (71, [40, 31 + 9, 26 + 14, 15])


async def test_who_waits_for_what_fails_computes_it(tiny: LocalEngine, forwards: Forwards) -> None:
    segments = await prompt_of(tiny)
    forwards.sizes.clear()

    def fails(ids: list[int]) -> None:
        if len(forwards.sizes) == 1:
            raise RuntimeError("out of luck")

    forwards.before = fails
    lost, (seq, done) = await at_once(
        tiny,
        lambda: fill(tiny, segments, DENSE, shares=True),
        lambda: fill(tiny, input_of(tiny), BORROWED, answer(8), template=OTHER),
    )
    assert str(lost) == "out of luck"
    assert done.segments[1].computed == TASK
    assert await said(seq) == generate(tiny, whole(input_of(tiny)), 8)


# --- messages ---


async def test_kv_that_has_gone_is_computed_and_the_reason_says_so(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    assert segments[3].handle is not None
    tiny.release(segments[3].handle)
    seq, done = await fill(tiny, segments, Given({3: rotated(13)}), answer(20))
    assert done.segments[3].reason == f"computed, {GONE}; planned: test"
    assert seq.exact
    assert await said(seq) == generate(tiny, whole(segments), 20)


async def test_what_cannot_be_predicted_is_computed(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    seq, done = await fill(tiny, segments, Given({1: corrected()}, offsets="linear"), answer(8))
    assert done.segments[1].reason.startswith("computed, ")
    assert await said(seq) == generate(tiny, whole(segments), 8)


async def test_leading_tokens_that_were_computed_ahead_stay(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    message = segments[3]
    seq, _ = await fill(tiny, segments[:3], DENSE)
    leading = Segment("placeholder", "critic", message.ids[:5], index=3)
    await seq.extend([leading], DENSE, settle=False)
    rest = [replace(message, done=5), segments[4]]
    done = await seq.extend(rest, Given({0: rotated(0, 1, 2, 3, 4, 13)}), last=answer(1))
    usage = done.segments[0]
    assert (usage.tokens, usage.computed, usage.realigned) == (9, 1, 8)
    assert usage.positions == (0, 1, 2, 3, 4, 13)
    assert seq.state.exact_length == seq.state.placed[3].start + 5


# --- what is computed all the same ---


async def test_deviating_positions_are_those_of_the_largest_offset(tiny: LocalEngine) -> None:
    for seed in range(10, 16):
        await taught(tiny, await prompt_of(tiny, seed), 1)
    segments = await prompt_of(tiny)
    plan = SegmentPlan("realign", "test", (0,), 5)
    policy = Given({1: plan}, **OFFSETS)
    seq, done = await fill(tiny, segments, policy)
    key = seq.state.placed[1].key
    assert key is not None
    base = tiny.segments.get(key)
    assert base is not None
    offset = seq.moment.models["0"].predict(base)
    sizes = []
    for token in range(TASK):
        size = 0.0
        for layer in range(1, offset.keys.shape[0]):
            for part in (offset.keys, offset.values):
                every = float(part[layer].square().sum())
                size += float(part[layer, :, token].square().sum()) / every
        sizes.append(size)
    largest = sorted(range(1, TASK), key=lambda token: -sizes[token])[:5]
    assert done.segments[1].positions == tuple(sorted([0, *largest]))
    assert (done.segments[1].computed, done.segments[1].corrected) == (6, True)


async def test_of_a_realigned_sequence_only_the_exact_start_enters_the_prefix_cache(
    tiny: LocalEngine,
) -> None:
    segments = await prompt_of(tiny)
    plans = {1: rotated(0, 1, 2), 3: rotated(13)}
    seq, _ = await fill(tiny, segments, Given(plans, feeds_prefix=True), answer(4))
    await answered(seq)
    await seq.finish()
    await on_thread(tiny)
    held = tiny.prefix.match(whole(segments))
    assert held is not None
    assert held[1] == HEAD + 3  # the literal and the computed start; nothing realigned


# --- learning ---


async def test_what_is_learned_is_known_to_the_next_lookup(
    tiny: LocalEngine, forwards: Forwards
) -> None:
    """Although it waits for calls that are on their way to a first token."""
    segments = await prompt_of(tiny)
    policy = Given(learn=(1,), **OFFSETS)
    seq, _ = await fill(tiny, segments, policy, answer(1))
    await answered(seq)
    long, later = open_seq(tiny, 1000), Given(**OFFSETS)
    learned = []
    forwards.before = lambda ids: learned.append(len(tiny.lessons))
    await at_once(
        tiny,
        seq.finish,
        seq.close,
        lambda: extend(long, random_ids(tiny, 900)),
        lambda: fill(tiny, segments, later),
    )
    assert later.facts[1].offset is not None
    assert later.facts[1].offset.samples == 1
    await tiny.drain()
    assert (await on_thread(tiny, lambda: seq.state.buffer)) is None


async def test_a_lesson_of_a_family_is_learned_of_a_computed_prompt(tiny: LocalEngine) -> None:
    """It keeps the messages that it needs, and its sequence, until it is learned."""
    segments = await prompt_of(tiny)
    seq, _ = await fill(tiny, segments, Given(bases="borrowed"), answer(4))
    await answered(seq)
    handle = segments[3].handle
    assert handle is not None

    async def release() -> None:
        tiny.release(handle)

    await at_once(tiny, lambda: seq.finish(segments, "linear"), release, seq.close)
    await tiny.drain()
    known = tiny.predictability(seq.state.call, "linear")
    assert (known["critic"].samples, known["task"].samples) == (1, 0)
    assert handle.key not in tiny.segments
    assert await on_thread(tiny, lambda: tiny.admission.used) == 0


async def test_a_realigned_sequence_teaches_nothing(tiny: LocalEngine) -> None:
    segments = await prompt_of(tiny)
    seq, _ = await fill(tiny, segments, Given({1: rotated()}, bases="alone"), answer(4))
    await answered(seq)
    await seq.finish(segments, "linear")
    await seq.close()
    await tiny.drain()
    assert not tiny.offsets.models
