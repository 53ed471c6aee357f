"""A worker does what it is told: fills, saves, lessons, questions; beside stand-in caches."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets import LinearOffsets
from kvcomm.vllm.facts import Facts, Told, together
from kvcomm.vllm.learner import Learner, State
from kvcomm.vllm.orders import Ask, Copy, Fill, Load, Orders, Save, Teach
from kvcomm.vllm.ropes import TableRope
from kvcomm.vllm.worker import Worker
from tests.vllm.standins import DIM, HEADS, SLOTS, apart, layer
from tests.vllm.test_ropes import RotaryEmbedding

MODEL = ("linear", "f" * 16 + "-0", "text")
LAYERS = 3
ROPE = TableRope(RotaryEmbedding().cos_sin_cache[:, : DIM // 2 * 2])


def rope() -> TableRope:
    table = RotaryEmbedding(rotary=4).cos_sin_cache
    return TableRope(table)


def worker(dtype: torch.dtype = torch.float32, **more: Any) -> Worker:
    layers = [layer(apart, blocks=40, dtype=dtype) for _ in range(LAYERS)]
    return Worker(0, layers, SLOTS, rope(), **more)


def random(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, LAYERS, HEADS, tokens, DIM).to(dtype)
    return keys, values


def run(one: Worker, **orders: Any) -> Facts:
    """A step."""
    step = Orders(**orders)
    one.begin(step)
    one.end(step)
    return one.facts()


def computed(one: Worker, blocks: list[int], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model has written into the first slots of a request."""
    keys, values = random(tokens, one.paged.dtype)
    one.paged.write(blocks, [(0, keys, values)])
    return keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_in_place_is_equal_bit_by_bit(dtype: torch.dtype) -> None:
    one = worker(dtype)
    keys, values = computed(one, [1, 2, 3], 20)
    run(one, after=[Save((1, 2, 3), (Copy(1, 5, 20),))])
    run(one, loads=[Load((7, 8, 9), (Fill(6, 12, 1, 1), Fill(12, 20, 1, 7)))])
    found = one.paged.read([7, 8, 9], 6, 20)
    assert torch.equal(found.keys, keys[:, :, 6:])
    assert torch.equal(found.values, values[:, :, 6:])


def test_what_moves_is_turned_to_its_place() -> None:
    one = worker()
    keys, values = computed(one, [1, 2, 3], 20)
    run(one, after=[Save((1, 2, 3), (Copy(1, 5, 20),))])
    run(one, loads=[Load((7, 8, 9, 10), (Fill(17, 27, 1, 2),))])
    found = one.paged.read([7, 8, 9, 10], 17, 27)
    wanted = rope().rotate(rope().unrotate(keys[:, :, 7:17], 7), 17)
    assert torch.allclose(found.keys, wanted, atol=1e-6)
    assert torch.equal(found.values, values[:, :, 7:17])


def test_blocks_are_read_before_a_step_and_entries_dropped_after_it() -> None:
    one = worker()
    keys, _ = computed(one, [1, 2], 10)
    run(
        one,
        before=[Save((1, 2), (Copy(1, 2, 10),))],
        loads=[Load((5, 6), (Fill(2, 10, 1),))],
        drops=[1, 99],
    )
    assert torch.equal(one.paged.read([5, 6], 2, 10).keys, keys[:, :, 2:])
    assert len(one.store) == 0


def test_a_load_that_cannot_be_done_is_reported() -> None:
    one = worker()
    run(one, loads=[Load((3, 4, 5, 6), (Fill(9, 18, 1),))])
    assert one.failed() == {4, 5}
    assert one.failed() == set()
    run(one, loads=[Load((3, 4), (Fill(8, 9, 0),), fails=True)])
    assert one.failed() == {4}


def wait(one: Worker, found: Facts, done: Callable[[Facts], bool]) -> Facts:
    """What is said from `found` on, until it is enough."""
    until = time.monotonic() + 20
    while not done(found):
        assert time.monotonic() < until
        time.sleep(0.01)
        found = found.merged(one.facts())
    return found


def taught(one: Worker, lessons: int, family: str = "linear") -> tuple[Any, list[KV]]:
    """Teach a worker offsets that are a linear function of base KV; returns that and the bases."""
    torch.manual_seed(0)
    mix = torch.randn(LAYERS, HEADS, 2 * DIM, 2 * DIM) * 0.2
    bases = []

    def offset(kv: KV) -> KV:
        both = torch.cat([kv.keys, kv.values], dim=3) @ mix
        both[0] = 0
        return KV(*both.chunk(2, dim=3))

    for number in range(1, lessons + 1):
        keys, values = random(12)
        one.paged.write([1, 2, 3], [(3, keys, values)])
        run(one, after=[Save((1, 2, 3), (Copy(number, 3, 15),))])
        base = KV(rope().unrotate(keys, 3), values)
        bases.append(base)
        true = base + offset(base)
        one.paged.write([4, 5, 6], [(10, rope().rotate(true.keys, 10), true.values)])
        model = (family, *MODEL[1:])
        teach = Teach(number, model, number, 10, 22, 0, None)
        facts = run(one, after=[Save((4, 5, 6), (), (teach,))])
        # Whoever is next has these blocks.
        computed(one, [4, 5, 6], 24)
        wait(one, facts, lambda facts: bool(facts.lessons))
    return offset, bases


def test_offsets_are_learned_and_added() -> None:
    one = worker()
    offset, bases = taught(one, 30)
    answer = run(one, asks=[Ask(7, MODEL, 30, 0, 12)]).answers[0][7]
    assert answer is not None
    assert answer.shareable
    assert answer.samples == 30
    assert 0 < answer.left < answer.total
    fill = Fill(18, 28, 30, 2, MODEL, 0.5)
    run(one, loads=[Load((7, 8, 9, 10), (fill,))])
    found = one.paged.read([7, 8, 9, 10], 18, 28)
    base = bases[-1].slice(2, 12)
    predicted = one.learner.predict(MODEL, base)
    wanted = base.values + 0.5 * predicted.values
    assert torch.allclose(found.values, wanted, atol=1e-5)
    assert torch.allclose(
        found.keys, rope().rotate(base.keys + 0.5 * predicted.keys, 18), atol=1e-4
    )
    true = offset(base).values
    assert float((predicted.values - true).norm() / true.norm()) < 0.9
    one.learner.close()


def test_anchors_predict_from_the_whole_text() -> None:
    one = worker()
    _, bases = taught(one, 3, "anchors")
    model = ("anchors", *MODEL[1:])
    fill = Fill(20, 24, 2, 5, model)
    run(one, loads=[Load((7, 8, 9), (fill,))])
    found = one.paged.read([7, 8, 9], 20, 24)
    whole = one.learner.predict(model, bases[1])
    wanted = bases[1].values[:, :, 5:9] + whole.values[:, :, 5:9]
    assert torch.allclose(found.values, wanted, atol=1e-5)
    told = run(one, asks=[Ask(1, model, 2, 0, 12)]).answers[0][1]
    assert told is not None
    assert told.reach == 12
    one.learner.close()


def test_a_literal_is_predicted_from_the_text_before_it() -> None:
    one = worker()
    found = Facts()
    for number in (1, 2):
        keys, values = random(10)
        one.paged.write([1, 2], [(0, keys, values)])
        run(one, after=[Save((1, 2), (Copy(10 * number, 0, 6), Copy(10 * number + 1, 6, 10)))])
        truth, more = random(10)
        one.paged.write([4, 5], [(2, truth, more)])
        teach = Teach(number, MODEL, 10 * number, 2, 8, 0, 10 * number + 1, 4)
        found = found.merged(run(one, after=[Save((4, 5), (), (teach,))]))
    told = wait(
        one, found, lambda f: f.models.get(0, {}).get(MODEL, Told(False, "", 0, 1)).samples == 2
    )  # type: ignore[union-attr]
    assert told.models[0][MODEL].literals == (4,)  # type: ignore[union-attr]
    fill = Fill(12, 14, 21, 1, MODEL, behind=20)
    run(one, loads=[Load((7, 8), (fill,))])
    there = one.paged.read([7, 8], 12, 14)
    base = one.store[21].free(rope())
    offset = one.learner.predict(MODEL, base, 4)
    assert torch.allclose(there.values, (base + offset).values[:, :, 1:3], atol=1e-5)
    one.learner.close()


def test_what_cannot_be_predicted_fails_a_load_and_not_the_worker() -> None:
    one = worker()
    computed(one, [1, 2], 10)
    run(one, after=[Save((1, 2), (Copy(1, 0, 10),))])
    run(one, loads=[Load((3, 4), (Fill(0, 9, 1, 0, MODEL),))])
    assert one.failed() == {3, 4}
    facts = run(one, asks=[Ask(1, MODEL, 1, 0, 10), Ask(2, ("linear:x=1", "t", "l"), 1, 0, 10)])
    unknown, nonsense = facts.answers[0][1], facts.answers[0][2]
    assert unknown is not None
    assert not unknown.shareable
    assert nonsense is None


def test_a_lesson_that_fails_is_over() -> None:
    one = worker()
    computed(one, [1, 2], 10)
    run(one, after=[Save((1, 2), (Copy(1, 0, 10),))])
    teach = Teach(5, ("linear:x=1", "t", "l"), 1, 0, 10)
    facts = run(one, after=[Save((1, 2), (), (teach,))])
    facts = wait(one, facts, lambda facts: bool(facts.lessons))
    assert facts.lessons == {0: (5,)}
    assert not facts.models
    one.learner.close()


def test_what_was_learned_is_kept_and_found_again(tmp_path: Path) -> None:
    state = State(tmp_path / "0-of-1", "model", "abc")
    one = worker(state=state)
    taught(one, 4)
    one.learner.close()
    again = worker(state=State(tmp_path / "0-of-1", "model", "abc"))
    told = again.facts().models[0][MODEL]
    assert told is not None
    assert told.samples == 4
    kv = KV(*random(5))
    assert torch.allclose(
        one.learner.predict(MODEL, kv).values, again.learner.predict(MODEL, kv).values, atol=1e-4
    )
    other = worker(state=State(tmp_path / "0-of-1", "model", "other"))
    assert "neither read nor kept" in other.learner.refused
    assert not other.facts().models


def test_models_make_way_when_there_is_no_room() -> None:
    like = KV(*2 * [torch.zeros(LAYERS, HEADS, 1, DIM)])
    one = Learner(0.0, like, None)
    model = LinearOffsets()
    model.observe(KV(*random(9)), KV(*random(9)), KV(*random(0)))
    one._offsets.models["linear", "old", "x"] = model
    from kvcomm.vllm.learner import Observation

    one._learn(Observation(1, MODEL, lambda: KV(*random(9)), lambda: KV(*random(9))))
    news, _ = one.news()
    assert news[MODEL] is None
    assert news["linear", "old", "x"] is None


def test_ranks_are_heard_together() -> None:
    one = Told(True, "a", 5, 0.1, 1.0, 10.0, literals=(3, 4))
    assert together([one]) == one
    both = together([one, Told(True, "b", 4, 0.9, 9.0, 10.0, literals=(4,))])
    assert (both.samples, both.error, both.literals) == (4, 0.5, (4,))
    assert both.shareable
    assert not together([one, Told(True, "b", 2, 0.9, 9.0, 10.0)]).shareable
    assert not together([one, Told(False, "b", 9, 1.0, 50.0, 10.0)]).shareable
    anchors = together([Told(True, "a", 5, 1.0, reach=9), Told(False, "b", 5, 1.0, reach=7)])
    assert (anchors.shareable, anchors.reason, anchors.reach) == (False, "b", 7)
