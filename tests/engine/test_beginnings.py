"""Equal beginnings: rows of a step compute them once, and lose nothing with one that is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import torch

from kvcomm.engine import loop as loop_module
from kvcomm.engine.base import AHEAD, BACKGROUND, READY, Call
from kvcomm.engine.beginnings import Beginning, lent
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.sequence import LocalSequence
from kvcomm.errors import Preempted
from kvcomm.kv import Slab
from kvcomm.kv.prefix import BLOCK
from kvcomm.prompt import Template
from kvcomm.reuse.plan import Step
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

TOKENS = 8


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every forward of more than single tokens."""
    real, found = loop_module.packed_forward, list[int]()

    def seen(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        if len(packed) > TOKENS:
            found.append(len(packed))
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", seen)
    return found


async def at_once(engine: LocalEngine, *starts: Callable[[], Awaitable[object]]) -> list[object]:
    """Start all of these before the loop looks at any, in this order; errors are returned."""
    busy = threading.Event()
    held = engine.loop.submit(busy.wait)
    tasks = []
    for start in starts:
        tasks.append(asyncio.ensure_future(start()))
        await asyncio.sleep(0)
    busy.set()
    await asyncio.wrap_future(held)
    return await asyncio.gather(*tasks, return_exceptions=True)


def extending(seq: LocalSequence, ids: Sequence[int]) -> Callable[[], Awaitable[object]]:
    recorded = replace(answer(TOKENS), record=True)
    return lambda: seq.extend([segment(ids)], [COMPUTE], answer=recorded)


async def computed(
    engine: LocalEngine, prompts: Sequence[list[int]], rows: Sequence[LocalSequence] = ()
) -> list[int]:
    """Extend rows by these prompts at once; how many tokens of each were computed.

    Logits and tokens are compared with those of a row that is alone.
    """
    seqs = rows or [open_row(engine, len(ids) + TOKENS, prefix=True) for ids in prompts]
    pairs = zip(seqs, prompts, strict=True)
    done = await at_once(engine, *[extending(seq, ids) for seq, ids in pairs])
    # References only when nothing decodes any more: they change the model's attention.
    said = [ids_of(await decode(seq)) for seq in seqs]
    for seq, ids, tokens in zip(seqs, prompts, said, strict=True):
        assert seq._decoding is not None
        assert seq._decoding.record is not None
        assert tokens == generate(engine, ids, TOKENS)
        truth = plain_logits(engine, ids)[-1]
        assert torch.allclose(seq._decoding.record[0], truth, rtol=0, atol=1e-9)
        await seq.close()
    return [sum(e.computed for e in found) for found in done]  # type: ignore[attr-defined]


def test_the_longest_piece_of_the_same_namespace_is_lent(tiny: LocalEngine) -> None:
    ids = list(range(100))
    wanted = Beginning("a", ids)
    one, two = tiny.new_slab(1), tiny.new_slab(1)

    def found(*givers: tuple[Slab, Beginning, int], start: int = 0) -> tuple[Slab, int] | None:
        piece = lent(wanted, start, 99, givers)
        assert piece is None or piece.start == start
        return piece and (piece.slab, piece.stop)

    assert found() is None
    assert found((one, Beginning("b", ids), 100)) is None
    assert found((one, Beginning("a", ids[: BLOCK - 1]), 100)) is None
    assert found((one, Beginning("a", ids), BLOCK - 1)) is None
    assert found((one, Beginning("a", ids[: BLOCK + 19]), 100), start=20) is None
    assert found((one, Beginning("a", ids[:50]), 100), (two, Beginning("a", ids), 40)) == (one, 50)
    assert found((one, Beginning("a", ids[:50]), 100), (two, Beginning("a", ids), 60)) == (two, 60)
    assert found((one, Beginning("a", ids), 100), start=20) == (one, 99)


async def test_two_rows_of_one_step_compute_their_beginning_once(
    tiny: LocalEngine, packs: list[int]
) -> None:
    shared = random_ids(tiny, 80)
    prompts = [shared + random_ids(tiny, 20, seed=seed) for seed in (1, 2)]
    assert await computed(tiny, prompts) == [100, 20]
    assert packs == [100 + 20]


async def test_an_equal_prompt_computes_its_last_token_only(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 60)
    assert await computed(tiny, [ids, ids]) == [60, 1]


async def test_earlier_chunks_are_taken_too(
    tiny: LocalEngine, packs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last chunk leaves room in the step for a row that has the same beginning."""
    monkeypatch.setattr(loop_module, "STEP_TOKENS", 50)
    shared = random_ids(tiny, 110)
    prompts = [shared + random_ids(tiny, 10, seed=seed) for seed in (1, 2)]
    assert await computed(tiny, prompts) == [120, 10]
    assert packs == [50, 50, 20 + 10]


async def test_nested_beginnings_are_computed_once(tiny: LocalEngine, packs: list[int]) -> None:
    one, two, three, four = (random_ids(tiny, 40, seed=seed) for seed in range(4))
    prompts = [one + four, one + two + four, one + two + three]
    assert await computed(tiny, prompts) == [80, 80, 40]
    assert packs == [80 + 80 + 40]


@pytest.mark.parametrize("case", ["short", "namespace", "reads", "feeds"])
async def test_rows_that_cannot_take_it_compute_it(
    tiny: LocalEngine, packs: list[int], case: str
) -> None:
    shared = random_ids(tiny, BLOCK - 1 if case == "short" else 40)
    prompts = [[*shared, 11, *random_ids(tiny, 30)], [*shared, 12, *random_ids(tiny, 30)]]
    first = open_row(tiny, 100, prefix=True, namespace="one")
    second = open_row(tiny, 100, prefix=True, namespace="two" if case == "namespace" else "one")
    if case == "feeds":
        first._call = replace(first._call, feeds_prefix=False)
    if case == "reads":
        second._call = replace(second._call, reads_prefix=False)
    sizes = [len(ids) for ids in prompts]
    assert await computed(tiny, prompts, [first, second]) == sizes
    assert packs == [sum(sizes)]


async def test_a_cancelled_row_gives_nothing(tiny: LocalEngine, packs: list[int]) -> None:
    shared = random_ids(tiny, 40)
    gone, second = (open_row(tiny, 100, prefix=True) for _ in range(2))

    def cancel() -> None:
        assert gone._work is not None
        gone._work.cancelled = gone._work.future.cancel()

    lost, *_ = await at_once(
        tiny,
        extending(gone, [*shared, 11]),
        extending(second, [*shared, 12]),
        lambda: tiny.call(cancel),
    )
    assert isinstance(lost, asyncio.CancelledError)
    assert packs == [41]
    assert ids_of(await decode(second)) == generate(tiny, [*shared, 12], TOKENS)
    await gone.close()
    await second.close()


@pytest.mark.parametrize("how", ["is cancelled", "gives way"])
async def test_a_row_that_is_lost_in_the_step_has_given(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real, sizes = loop_module.packed_forward, list[int]()
    shared = random_ids(tiny, 40)
    gone, second = (open_row(tiny, 100, prefix=True) for _ in range(2))
    running = asyncio.get_running_loop()

    def lose(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        sizes.append(len(packed))
        if len(sizes) == 1:
            assert gone._work is not None
            if how == "is cancelled":
                gone._work.future.cancel()
            else:
                gone.give_way(running)
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", lose)
    _, done = await at_once(tiny, extending(gone, [*shared, 11]), extending(second, [*shared, 12]))
    assert sizes[0] == 41 + 1
    assert sum(e.computed for e in done) == 1  # type: ignore[attr-defined]
    assert ids_of(await decode(second)) == generate(tiny, [*shared, 12], TOKENS)
    await gone.close()
    await second.close()


async def test_a_row_that_gives_way_between_two_steps_gives_nothing(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "STEP_TOKENS", 30)
    real, sizes = loop_module.packed_forward, list[int]()
    shared = random_ids(tiny, 40)
    gone, second = (open_row(tiny, 100, prefix=True) for _ in range(2))
    running = asyncio.get_running_loop()

    def lose(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        sizes.append(len(packed))
        if len(sizes) == 1:
            gone.give_way(running)
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", lose)
    lost, done = await at_once(
        tiny, extending(gone, [*shared, 11]), extending(second, [*shared, 12])
    )
    assert isinstance(lost, Preempted)
    assert sizes[:3] == [30, 30, 11]
    assert sum(e.computed for e in done) == 41  # type: ignore[attr-defined]
    assert ids_of(await decode(second)) == generate(tiny, [*shared, 12], TOKENS)
    await gone.close()
    await second.close()


async def test_a_failed_step_fails_both(tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = random_ids(tiny, 40)
    rows = [open_row(tiny, 100, prefix=True) for _ in range(2)]

    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "packed_forward", broken)
        lost = await at_once(tiny, *[extending(row, [*shared, i]) for i, row in enumerate(rows)])
    assert [str(error) for error in lost] == ["out of luck"] * 2
    for row in rows:
        await row.close()
    assert await computed(tiny, [[*shared, 11], [*shared, 12]]) == [41, 1]


@pytest.mark.parametrize("second", [14, 90])
async def test_a_step_that_is_halved_gives_what_it_computes(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, second: int
) -> None:
    """When memory runs out, the row that takes is cut, or begins anew."""
    real, sizes = loop_module.packed_forward, list[int]()
    monkeypatch.setattr(tiny.loop, "_step_tokens", tiny.loop._step_tokens)

    def short(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        sizes.append(len(packed))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", short)
    shared = random_ids(tiny, 40)
    prompts = [shared + random_ids(tiny, size, seed=size) for size in (14, second)]
    prompts[1][40] = (prompts[0][40] + 1) % 200 + 10
    found = await computed(tiny, prompts)
    assert found == [54, second]
    assert sizes[:2] == [54 + second, (54 + second) // 2]


async def test_a_row_that_was_halved_and_lost_gives_nothing(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = loop_module.packed_forward, list[int]()
    monkeypatch.setattr(tiny.loop, "_step_tokens", tiny.loop._step_tokens)
    shared = random_ids(tiny, 40)
    gone, second = (open_row(tiny, 100, prefix=True) for _ in range(2))

    def short(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        sizes.append(len(packed))
        if len(sizes) == 1:
            assert gone._work is not None
            gone._work.cancelled = gone._work.future.cancel()
            raise torch.OutOfMemoryError("no memory")
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", short)
    _, done = await at_once(tiny, extending(gone, [*shared, 11]), extending(second, [*shared, 12]))
    assert sizes[:3] == [41 + 1, 21, 21]
    assert sum(e.computed for e in done) == 41  # type: ignore[attr-defined]
    assert ids_of(await decode(second)) == generate(tiny, [*shared, 12], TOKENS)
    await gone.close()
    await second.close()


@pytest.mark.parametrize("later", [AHEAD, BACKGROUND])
async def test_the_urgent_row_computes_and_the_other_finds_it(
    tiny: LocalEngine, packs: list[int], monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    """However early the other was queued."""
    monkeypatch.setattr(loop_module, "HOLD_S", 0.0)
    monkeypatch.setattr(loop_module, "PAUSE_S", 0.0)
    shared = random_ids(tiny, 40)
    rows = [open_row(tiny, 100, prefix=True, priority=p) for p in (later, READY)]
    assert await computed(tiny, [[*shared, 11, 11], [*shared, 12]], rows) == [2, 41]
    assert packs[0] == 41


async def test_an_urgent_row_does_not_wait_for_one_that_has_begun(
    tiny: LocalEngine, packs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "HOLD_S", 0.0)
    monkeypatch.setattr(loop_module, "STEP_TOKENS", 30)
    ids = random_ids(tiny, 75)
    ahead = open_row(tiny, 100, prefix=True, priority=AHEAD)
    urgent = open_row(tiny, 100, prefix=True)
    real, begun, going = loop_module.packed_forward, threading.Event(), threading.Event()

    def slow(*args: object) -> torch.Tensor:
        begun.set()
        going.wait()
        return real(*args)

    monkeypatch.setattr(loop_module, "packed_forward", slow)
    first = asyncio.ensure_future(extending(ahead, ids)())
    await asyncio.to_thread(begun.wait)
    second = asyncio.ensure_future(extending(urgent, ids)())
    await asyncio.sleep(0)
    going.set()
    assert sum(e.computed for e in await second) == 75  # type: ignore[attr-defined]
    assert packs[:4] == [30, 30, 30, 15]
    await first
    answers = [ids_of(await decode(seq)) for seq in (urgent, ahead)]
    assert answers == [generate(tiny, ids, TOKENS)] * 2
    await ahead.close()
    await urgent.close()


async def test_what_is_realigned_is_not_taken(tiny: LocalEngine, packs: list[int]) -> None:
    """Both have the same ids; only the first literal of the one will be exact, and is known."""
    literal, text, end = (random_ids(tiny, size, seed=size) for size in (32, 50, 20))
    template = Template((tuple(literal), tuple(end)), ("task",), "of two")
    ids = [*literal, *text, *end]

    def opened() -> LocalSequence:
        call = Call("n", template, 150, reads_prefix=True, feeds_prefix=True)
        return tiny.open(call)  # type: ignore[return-value]

    known, realigned, exact = opened(), opened(), opened()
    await known.extend([segment(literal)], [COMPUTE])
    survey = await realigned.survey(template.fill({"task": tuple(text)}))
    rotated = Step("realign", "test", (), corrected=False)
    packs.clear()

    def realign() -> Awaitable[object]:
        steps = [COMPUTE, rotated, COMPUTE]
        return realigned.extend(survey.segments, steps, answer=answer(TOKENS))

    await at_once(tiny, realign, extending(exact, ids))
    assert not realigned.exact
    assert packs == [20 + 70]
    answers = [ids_of(await decode(seq)) for seq in (realigned, exact)]
    assert answers[1] == generate(tiny, ids, TOKENS)
    for seq in (known, realigned, exact):
        await seq.close()


@pytest.mark.parametrize("seed", range(6))
async def test_random_rows_compute_no_beginning_twice(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(loop_module, "STEP_TOKENS", 90)
    draw = random.Random(seed)
    prompts: list[list[int]] = []
    for number in range(7):
        base = draw.choice(prompts) if prompts else []
        keep = draw.randrange(len(base) + 1)
        fresh = random_ids(tiny, draw.randrange(1, 70), seed=100 * seed + number)
        prompts.append([*base[:keep], *fresh])
    found = await computed(tiny, prompts)
    for index, ids in enumerate(prompts):
        held = max((_common(ids, other) for other in prompts[:index]), default=0)
        assert found[index] < len(ids) - held + BLOCK


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
