"""Equal beginnings: sequences of a step compute them once, and lose nothing with one of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from kvcomm.engine.base import AHEAD
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.kv.prefix import BLOCK
from kvcomm.prompt import Template, common_prefix
from kvcomm.reuse.policy import ReuseOptions
from tests.engine.support import (
    DENSE,
    Forwards,
    Given,
    answer,
    answered,
    at_once,
    close,
    extend,
    first_logits,
    generate,
    ids_of,
    open_seq,
    opened,
    plain_logits,
    random_ids,
    rotated,
    spec,
)

TOKENS = 8


def extending(seq: LocalSequence, ids: Sequence[int]) -> Callable[[], Any]:
    return lambda: extend(seq, ids, answer(TOKENS, record=True))


def prefills(forwards: Forwards) -> list[int]:
    """The forwards of more than single tokens."""
    return [size for size in forwards.sizes if size > TOKENS]


def pair(engine: LocalEngine, **changes: Any) -> list[LocalSequence]:
    return [open_seq(engine, 150, prefix=True, **changes) for _ in range(2)]


async def computed(
    engine: LocalEngine, prompts: Sequence[list[int]], seqs: Sequence[LocalSequence] = ()
) -> list[int]:
    """Extend sequences by these prompts at once; how many tokens of each were computed.

    Logits and tokens are compared with those of a sequence that is alone.
    """
    seqs = seqs or [open_seq(engine, len(ids) + TOKENS, prefix=True) for ids in prompts]
    both = list(zip(seqs, prompts, strict=True))
    done = await at_once(engine, *[extending(seq, ids) for seq, ids in both])
    # References only when nothing answers any more: they change the model's attention.
    said = [ids_of(await answered(seq)) for seq in seqs]
    for (seq, ids), tokens in zip(both, said, strict=True):
        assert tokens == generate(engine, ids, TOKENS)
        assert close(first_logits(seq), plain_logits(engine, ids)[-1], 1e-9)
    return [sum(usage.computed for usage in found.segments) for found in done]


@pytest.mark.parametrize(
    ("own", "counts", "steps"),
    [((20, 20), [100, 20], [100 + 20]), ((0, 0), [80, 1], [80 + 1]), ((90, 90), [170, 90], [260])],
)
async def test_two_of_one_step_compute_their_beginning_once(
    tiny: LocalEngine, forwards: Forwards, own: Sequence[int], counts: list[int], steps: list[int]
) -> None:
    shared = random_ids(tiny, 80)
    prompts = [shared + random_ids(tiny, size, seed=seed) for seed, size in enumerate(own, 1)]
    assert await computed(tiny, prompts) == counts
    assert prefills(forwards) == steps


@pytest.mark.parametrize("case", ["short", "namespace", "reads", "feeds"])
async def test_who_cannot_take_it_computes_it(
    tiny: LocalEngine, forwards: Forwards, case: str
) -> None:
    shared = random_ids(tiny, BLOCK - 1 if case == "short" else 40)
    prompts = [[*shared, i, *random_ids(tiny, 30)] for i in (11, 12)]
    feeds, reads = (open_seq(tiny, 200, prefix=True) for _ in range(2))
    if case == "namespace":
        reads = open_seq(tiny, 200, prefix=True, namespace="two")
    if case == "feeds":
        feeds = open_seq(tiny, 200, reuse=ReuseOptions(reads_prefix=True))
    if case == "reads":
        reads = open_seq(tiny, 200, reuse=ReuseOptions(feeds_prefix=True))
    sizes = [len(ids) for ids in prompts]
    assert await computed(tiny, prompts, [feeds, reads]) == sizes
    assert prefills(forwards) == [sum(sizes)]


@pytest.mark.parametrize("limit", [2048, 30])
async def test_one_that_ends_in_the_step_or_before_loses_nobody(
    limited: LocalEngine, forwards: Forwards, limit: int
) -> None:
    """In the step it has given what it computed; before it the other one computes all."""
    limited.runner.limit = limit
    shared = random_ids(limited, 40)
    gone, second = pair(limited)
    lost, _, done = await forwards.during(
        extending(gone, [*shared, 11]), gone.close, extending(second, [*shared, 12])
    )
    whole = limit == 2048
    assert isinstance(lost, Exception) != whole
    assert done.segments[0].computed == (1 if whole else 41)
    assert ids_of(await answered(second)) == generate(limited, [*shared, 12], TOKENS)


class Once:
    """A forward that fails, and only the first."""

    def __init__(self, forwards: Forwards, error: Exception) -> None:
        self.forwards, self.error = forwards, error
        forwards.before = self

    def __call__(self, packed: list[int]) -> None:
        if len(self.forwards.sizes) == 1:
            raise self.error


async def test_a_failed_step_fails_both(tiny: LocalEngine, forwards: Forwards) -> None:
    shared = random_ids(tiny, 40)
    Once(forwards, RuntimeError("out of luck"))
    lost = await at_once(tiny, *[extending(seq, [*shared, i]) for i, seq in enumerate(pair(tiny))])
    assert [str(error) for error in lost] == ["out of luck"] * 2
    assert await computed(tiny, [[*shared, 11], [*shared, 12]]) == [41, 1]


@pytest.mark.parametrize("second", [14, 90])
async def test_a_step_that_is_halved_gives_what_it_computes(
    limited: LocalEngine, forwards: Forwards, second: int
) -> None:
    """When memory runs out, the prompt that takes is cut, or begins anew."""
    Once(forwards, torch.OutOfMemoryError("no memory"))
    shared = random_ids(limited, 40)
    prompts = [[*shared, n, *random_ids(limited, size - 1)] for n, size in ((11, 14), (12, second))]
    assert await computed(limited, prompts) == [54, second]
    assert forwards.sizes[:2] == [54 + second, (54 + second) // 2]


async def test_who_is_ready_does_not_wait_for_one_that_has_begun(
    limited: LocalEngine, forwards: Forwards
) -> None:
    limited.runner.limit = 30
    ids = random_ids(limited, 75)
    ahead = open_seq(limited, 100, prefix=True, priority=AHEAD)
    ready = open_seq(limited, 100, prefix=True)
    _, done = await forwards.during(extending(ahead, ids), extending(ready, ids))
    assert done.segments[0].computed == 75
    assert prefills(forwards)[:4] == [30, 30, 30, 15]
    said = [ids_of(await answered(seq)) for seq in (ready, ahead)]
    assert said == [generate(limited, ids, TOKENS)] * 2


async def test_what_is_realigned_is_not_taken(tiny: LocalEngine, forwards: Forwards) -> None:
    """Both have the same ids; only the first literal of the one is exact."""
    literal, text, end = (random_ids(tiny, size, seed=size) for size in (32, 50, 20))
    template = Template((tuple(literal), tuple(end)), ("task",), "of two")
    segments = template.fill({"task": tuple(text)})
    options = {"reads_prefix": True, "feeds_prefix": True}
    made = spec(template=template, reuse=ReuseOptions(**options))
    known, moved, exact, other = (opened(tiny, made) for _ in range(4))
    await known.extend(segments[:1], Given(**options))
    await other.extend(segments[1:2], Given({0: rotated()}))  # base KV of the text is there, too
    forwards.sizes.clear()
    policies = {moved: Given({1: rotated()}, **options), exact: DENSE}
    asked = answer(TOKENS)
    await at_once(tiny, *[partial(s.extend, segments, p, last=asked) for s, p in policies.items()])
    assert (moved.exact, exact.exact) == (False, True)
    assert forwards.sizes[0] == 20 + 70
    said = [ids_of(await answered(seq)) for seq in (moved, exact)]
    assert said[1] == generate(tiny, [*literal, *text, *end], TOKENS) != said[0]


@pytest.mark.parametrize("seed", range(4))
async def test_random_prompts_compute_no_beginning_twice(limited: LocalEngine, seed: int) -> None:
    """Also where it was computed in earlier steps."""
    limited.runner.limit = 90
    draw = random.Random(seed)
    prompts: list[list[int]] = []
    for number in range(7):
        base = draw.choice(prompts) if prompts else []
        keep = draw.randrange(len(base) + 1)
        fresh = random_ids(limited, draw.randrange(1, 70), seed=100 * seed + number)
        prompts.append([*base[:keep], *fresh])
    found = await computed(limited, prompts)
    for index, ids in enumerate(prompts):
        held = max((common_prefix(ids, other) for other in prompts[:index]), default=0)
        assert found[index] < len(ids) - held + BLOCK
