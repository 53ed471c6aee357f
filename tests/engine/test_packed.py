"""Packed rows: what runs together computes what it computes alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from kvcomm.engine.attention import Pack, Part, packed_forward
from kvcomm.engine.local import LocalEngine
from tests.engine.support import (
    COMPUTE,
    answer,
    answers_together,
    decode,
    generate,
    ids_of,
    open_row,
    plain_logits,
    random_ids,
    segment,
)
from tests.support import TINY

Engines = Callable[..., LocalEngine]
SHAPES = [f"random:{shape}" for shape in TINY]


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_unequal_length_decode_as_if_alone(engine_of: Engines, name: str) -> None:
    engine = engine_of(name, "float64")
    prompts = [random_ids(engine, size, seed=size) for size in (3, 18, 41, 64)]

    assert answers_together(engine, prompts, 20) == [generate(engine, ids, 20) for ids in prompts]


def test_extending_rows_ride_along_with_decoding_ones(tiny: LocalEngine) -> None:
    long, short = random_ids(tiny, 700, seed=1), random_ids(tiny, 12, seed=2)

    async def go() -> tuple[list[int], list[int], int]:
        first = open_row(tiny, 60)
        await first.extend([segment(short)], [COMPUTE], answer=answer(40))
        second = open_row(tiny, 720, priority=1)
        steps = tiny.loop.steps
        decoding = asyncio.create_task(decode(first))
        await second.extend([segment(long)], [COMPUTE], answer=answer(10))
        tokens = ids_of(await decoding)
        used = tiny.loop.steps - steps
        return tokens, ids_of(await decode(second)), used

    tokens, after, used = asyncio.run(go())
    assert tokens == generate(tiny, short, 40)
    assert after == generate(tiny, long, 10)
    assert used < 40 + 3  # 700 tokens in chunks took no steps of their own


@pytest.mark.parametrize("name", SHAPES)
def test_scattered_positions_see_every_slot_below_them(engine_of: Engines, name: str) -> None:
    engine = engine_of(name, "float64")
    ids = random_ids(engine, 60, seed=3)
    row = engine.new_row(60)
    row.ids += ids

    def compute(positions: list[int]) -> torch.Tensor:
        pack = Pack([Part(row.slab, 0, positions)])
        chosen = [ids[i] for i in positions]
        return packed_forward(engine.network, chosen, positions, range(len(positions)), pack)

    with torch.inference_mode():
        compute(list(range(60)))
        again = [5, 6, 30, 31, 47, 59]
        logits = compute(again)
    expected = plain_logits(engine, ids)[again]
    assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_urgent_rows_are_computed_before_rows_ahead(tiny: LocalEngine) -> None:
    finished: list[str] = []

    async def go() -> None:
        async def one(name: str, size: int, priority: int) -> None:
            seq = open_row(tiny, size, priority=priority)
            await seq.extend([segment(random_ids(tiny, size))], [COMPUTE])
            finished.append(name)

        # The gate keeps the loop busy until both rows wait in line.
        gate = asyncio.create_task(tiny.call(lambda: __import__("time").sleep(0.05)))
        ahead = asyncio.create_task(one("ahead", 3000, 1))
        await asyncio.sleep(0.01)
        urgent = asyncio.create_task(one("urgent", 3000, 0))
        await asyncio.gather(gate, ahead, urgent)

    asyncio.run(go())
    assert finished == ["urgent", "ahead"]
