"""With everything computed, tokens and logits are those of transformers' own `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from kvcomm.engine.base import AHEAD
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.attention import Pack, Part, packed_forward
from tests.engine.support import (
    Forwards,
    answer,
    answered,
    answers_together,
    close,
    extend,
    generate,
    ids_of,
    open_seq,
    plain_logits,
    random_ids,
    said,
)
from tests.support import POSITIONS, shapes

Engines = Callable[..., LocalEngine]


async def in_pieces(engine: LocalEngine, ids: list[int], sizes: list[int], count: int) -> list[int]:
    """The answer to a prompt that grew by pieces of these sizes."""
    seq, start = open_seq(engine, len(ids) + count), 0
    for size in sizes:
        last = answer(count) if start + size == len(ids) else None
        await extend(seq, ids[start : start + size], last)
        start += size
    return await said(seq)


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
async def test_tiny_models_generate_the_same_tokens(engine_of: Engines, shape: str) -> None:
    # 70 tokens are far beyond mistral-tiny's window of 24.
    engine = engine_of(f"random:{shape}")
    ids = random_ids(engine, 70, seed=1)
    expected = generate(engine, ids, 40)
    assert len(set(expected)) > 3
    for sizes in ([70], [1, 22, 30, 17], [69, 1]):
        assert await in_pieces(engine, ids, sizes, 40) == expected


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
def test_sequences_of_unequal_length_answer_as_if_alone(engine_of: Engines, shape: str) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    prompts = [random_ids(engine, size, seed=size) for size in (3, 18, 41, 64)]
    assert answers_together(engine, prompts, 20) == [generate(engine, ids, 20) for ids in prompts]


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
def test_scattered_positions_see_every_slot_below_them(engine_of: Engines, shape: str) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    ids = random_ids(engine, 60, seed=3)
    buffer = engine._new_buffer(60)

    def compute(positions: list[int]) -> torch.Tensor:
        pack = Pack([Part(buffer, 0, positions)])
        chosen = [ids[i] for i in positions]
        return packed_forward(engine.network, chosen, positions, range(len(positions)), pack)

    again = [5, 6, 30, 31, 47, 59]
    with torch.inference_mode():
        compute(list(range(60)))
        logits = compute(again)
    assert close(logits, plain_logits(engine, ids)[again])


async def test_prompts_ride_along_with_answers(tiny: LocalEngine, forwards: Forwards) -> None:
    long, short = random_ids(tiny, 700, seed=1), random_ids(tiny, 12, seed=2)
    first, second = open_seq(tiny, 60), open_seq(tiny, 720, priority=AHEAD)
    await extend(first, short, answer(40))
    forwards.sizes.clear()
    answering = asyncio.create_task(answered(first))
    await extend(second, long, answer(10))
    # A reference only when nothing answers any more: it changes the model's attention.
    tokens, others = ids_of(await answering), await said(second)
    assert tokens == generate(tiny, short, 40)
    assert others == generate(tiny, long, 10)
    assert forwards.sizes[:4] == [257, 257, 189, 2]  # of 256 tokens, and of an answer
