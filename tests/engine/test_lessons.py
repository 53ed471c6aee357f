"""Engines that observe for each other know what one would that saw everything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import load_engine
from kvcomm.engine.replicas.lessons import Learner, Lessons
from kvcomm.errors import StateError
from tests.reuse.kvs import random_kv
from tests.reuse.offsets_conformance import close, samples

KEYS = [("linear", "t", "a"), ("anchors", "t", "0"), ("linear", "u", "b")]


@pytest.fixture
def learners() -> Iterator[list[Learner]]:
    """Three engines of the tiny model, the first two taught."""
    engines = [load_engine("random:llama-tiny", device="cpu") for _ in range(3)]
    for engine in engines:  # the samples are not the model's own
        engine.offsets.like = random_kv(1)
    made = [Learner(engine) for engine in engines]
    asyncio.run(begin(made[:2]))
    yield made
    for engine in engines:
        engine.close()


async def begin(learners: list[Learner]) -> None:
    for learner in learners:
        assert await learner.adopt({}) == {}


def engine_of(learner: Learner) -> LocalEngine:
    return learner._engine


async def observe(learner: Learner, seed: int, count: int = 2) -> None:
    """The same samples for every model of a learner."""

    def task() -> None:
        for key in KEYS:
            for base, offset, literal in samples(count, seed):
                engine_of(learner).offsets.named(*key).observe(base, offset, literal)

    await engine_of(learner).call(task)


async def known(learner: Learner) -> Lessons:
    """What a learner knows, its uses and errors left out; nothing is taken."""
    models = engine_of(learner).offsets.models
    return await engine_of(learner).call(
        lambda: {
            key: {
                name: tensor.clone()[:2] if name == "counters" else tensor.clone()
                for name, tensor in model.state().items()
            }
            for key, model in models.items()
            if model.samples
        }
    )


async def same(*learners: Learner) -> bool:
    """Whether all of them know the same; anchors may stand in another order."""
    first, *others = [await known(learner) for learner in learners]
    return all(
        first.keys() == other.keys()
        and all(
            close(ordered(first[key]), ordered(other[key]), 1e-6)
            if key[0] == "anchors"
            else close(first[key], other[key], 1e-6)
            for key in first
        )
        for other in others
    )


def ordered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The anchors of a pool, the smallest sum of bases first."""
    count = len(state["uses"])
    order = sorted(range(count), key=lambda i: float(state[f"{i}.base.keys"].sum()))
    return {
        f"{new}.{part}.{half}": state[f"{old}.{part}.{half}"]
        for new, old in enumerate(order)
        for part in ("base", "offset", "literal")
        for half in ("keys", "values")
    }


async def test_what_each_takes_from_the_other_is_known_to_both_once(
    learners: list[Learner],
) -> None:
    a, b, alone = learners
    for seed in (0, 200):
        await observe(a, seed)
        await observe(b, seed + 100)
        taken_a, taken_b = await a.take(), await b.take()
        assert taken_a
        assert taken_b
        await b.merge(taken_a)
        await a.merge(taken_b)
        await observe(alone, seed)
        await observe(alone, seed + 100)
    assert await same(a, b, alone)
    assert await a.take() == await b.take() == {}


async def test_one_that_was_started_anew_says_so_and_takes_no_lesson(
    learners: list[Learner],
) -> None:
    a, _, anew = learners
    await observe(anew, 100)
    assert await anew.take() is None
    assert await anew.copy() is None
    await observe(a, 0)
    await anew.merge(await a.take() or {})
    models = engine_of(anew).offsets.models
    assert {model.samples for model in models.values()} == {2}


async def test_the_whole_comes_once_whatever_was_known_and_however_often(
    learners: list[Learner],
) -> None:
    a, b, anew = learners
    await observe(a, 0)
    await observe(anew, 100)
    whole, late = await a.copy() or ({}, {})
    assert late
    assert await a.take() == {}
    mine = await anew.adopt(whole)
    assert await anew.adopt(whole) == {}, "it is taken, so the others have it"
    await anew.adopt({key: dict(state) for key, state in whole.items()})
    await a.merge(mine)
    whole, late = await a.copy() or ({}, {})
    assert late == {}
    await anew.adopt(whole)
    await b.adopt(whole)
    await observe(anew, 200)
    await a.merge(await anew.take() or {})
    await b.merge(await a.take() or {})
    assert await same(a, anew)
    assert {model.samples for model in engine_of(a).offsets.models.values()} == {6}
    assert {model.samples for model in engine_of(b).offsets.models.values()} == {4}


async def test_lessons_do_not_change_while_their_model_learns_on(learners: list[Learner]) -> None:
    a, _, _ = learners
    await observe(a, 0)
    whole, late = await a.copy() or ({}, {})
    before = {key: {n: t.clone() for n, t in state.items()} for key, state in whole.items()}
    await observe(a, 100)
    for lessons in (whole, late):
        for key, state in lessons.items():
            assert close(state, before[key], 1e-6)


async def test_a_folder_is_read_beside_what_was_observed(
    learners: list[Learner], tmp_path: Path
) -> None:
    a, b, alone = learners
    await observe(a, 0)
    await engine_of(a).save_state(tmp_path)
    await observe(b, 100)
    for learner in learners:  # a template that the folder does not know stays as it is
        model = engine_of(learner).offsets.named("linear", "v", "a")
        model.observe(*next(samples(1, 300)))
    await a.take()
    read, observed = await b.read(tmp_path, "")
    assert read.templates == 2
    del observed["linear", "v", "a"]
    await a.merge(observed)
    await observe(alone, 0)
    await observe(alone, 100)
    assert await same(a, b, alone)


async def test_a_folder_of_another_model_changes_nothing(
    learners: list[Learner], tmp_path: Path
) -> None:
    a, b, _ = learners
    (tmp_path / "x.safetensors").write_bytes(b"")
    await observe(a, 0)
    await observe(b, 0)
    with pytest.raises(StateError):
        await a.read(tmp_path, "")
    assert await same(a, b)
    assert await a.take()
