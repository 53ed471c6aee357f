"""With everything computed, greedy tokens are those of transformers' `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvcomm.engine.local import LocalEngine
from tests.engine.support import (
    COMPUTE,
    answer,
    decode,
    generate,
    ids_of,
    open_row,
    random_ids,
    segment,
)
from tests.support import TINY

Engines = Callable[..., LocalEngine]
MODELS = [f"random:{shape}" for shape in TINY]


def run(engine: LocalEngine, ids: list[int], chunks: list[int], count: int) -> list[int]:
    async def go() -> list[int]:
        seq = open_row(engine, len(ids) + count)
        start = 0
        for size in chunks:
            ending = answer(count) if start + size == len(ids) else None
            await seq.extend([segment(ids[start : start + size])], [COMPUTE], answer=ending)
            start += size
        return ids_of(await decode(seq))

    return asyncio.run(go())


@pytest.mark.parametrize("chunks", [[70], [1, 22, 30, 17], [69, 1]])
@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_generate_the_same_tokens(
    engine_of: Engines, name: str, chunks: list[int]
) -> None:
    # 70 tokens are far beyond mistral-tiny's window of 24.
    engine = engine_of(name)
    ids = random_ids(engine, 70, seed=1)
    expected = generate(engine, ids, 40)
    assert len(set(expected)) > 3
    assert run(engine, ids, chunks, 40) == expected


@pytest.mark.parametrize("chunks", [True, False])
def test_the_embedded_model_generates_the_same_tokens(smol: LocalEngine, chunks: bool) -> None:
    text = smol.codec.chat(
        "You solve problems.", "A box holds 12 eggs. How many eggs are in 7 boxes?"
    )
    ids, _ = smol.codec.encode_structured(text)
    sizes = [20, 9, len(ids) - 29] if chunks else [len(ids)]
    assert run(smol, ids, sizes, 32) == generate(smol, ids, 32)


def test_sampled_tokens_follow_the_seed_and_not_the_neighbours(tiny: LocalEngine) -> None:
    ids = random_ids(tiny, 20)

    async def go(neighbours: int) -> list[int]:
        async def one(seed_ids: list[int]) -> list[int]:
            seq, hot = open_row(tiny, 60), answer(30, temperature=1.0, top_p=0.9)
            await seq.extend([segment(seed_ids)], [COMPUTE], answer=hot)
            return ids_of(await decode(seq))

        others = [one(random_ids(tiny, 11, seed=s + 5)) for s in range(neighbours)]
        results = await asyncio.gather(one(ids), *others)
        return results[0]

    alone = asyncio.run(go(0))
    assert alone == asyncio.run(go(3))
    assert alone != generate(tiny, ids, 30)
