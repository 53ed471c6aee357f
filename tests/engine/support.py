"""What the engine tests share: random ids, plain references, short ways to open and extend."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import torch

from kvcomm.engine.attention import NAME
from kvcomm.engine.base import Answer, Call, Token
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.sequence import LocalSequence
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step
from kvcomm.sampling import Sampling

COMPUTE = Step("compute", "test")
_names = itertools.count()


def random_ids(engine: LocalEngine, count: int, seed: int = 0) -> list[int]:
    """Ids without the special ones at the start of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, engine.config.vocab_size, (count,), generator=generator).tolist()


def generate(engine: LocalEngine, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of transformers' own `generate`, without a final stop token."""
    model = engine.network
    model.set_attn_implementation("sdpa")
    try:
        tensor = torch.tensor([list(ids)])
        out = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=sorted(engine.stop),
            pad_token_id=0,
        )
    finally:
        model.set_attn_implementation(NAME)
    new: list[int] = out[0, len(ids) :].tolist()
    return new[:-1] if new[-1] in engine.stop else new


def plain_logits(engine: LocalEngine, ids: Sequence[int]) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of the model's own forward."""
    model = engine.network
    model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(NAME)


def open_row(
    engine: LocalEngine,
    capacity: int,
    *,
    prefix: bool = False,
    namespace: str = "",
    priority: int = 0,
) -> LocalSequence:
    """A sequence without a template."""
    return engine.open(
        Call(
            node=f"n{next(_names)}",
            template=Template(((),), (), "test"),
            capacity=capacity,
            messages=frozenset(),
            reads_prefix=prefix,
            feeds_prefix=prefix,
            namespace=namespace,
            priority=priority,
        )
    )


def segment(ids: Sequence[int], name: str = "literal 0") -> Segment:
    """A literal of these ids."""
    return Segment("literal", name, tuple(ids))


def answer(count: int, **sampling: float) -> Answer:
    """An answer of up to `count` tokens."""
    return Answer(Sampling(max_tokens=count, **sampling))  # type: ignore[arg-type]


async def decode(seq: LocalSequence) -> list[Token]:
    """All tokens of the answer."""
    return [token async for token in seq.decode()]


def ids_of(tokens: Sequence[Token]) -> list[int]:
    """The ids, a final stop token left out."""
    return [token.id for token in tokens if token.last != "stop"]


def answers_together(engine: LocalEngine, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy answers of rows that decode at the same time."""

    async def one(ids: list[int]) -> list[int]:
        seq = open_row(engine, len(ids) + tokens)
        await seq.extend([segment(ids)], [COMPUTE], answer=answer(tokens))
        return ids_of(await decode(seq))

    async def go() -> list[list[int]]:
        return await asyncio.gather(*map(one, prompts))

    return asyncio.run(go())
