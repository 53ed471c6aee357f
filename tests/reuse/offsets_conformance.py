"""What every offset model promises: `kvcomm.reuse.offsets.base.OffsetModel` as tests.

class TestMine(OffsetModelContract):
    def make(self) -> OffsetModel:
        return Mine()
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvcomm.kv import KV
from kvcomm.reuse.offsets import OffsetModel
from tests.reuse.kvs import equal, random_kv, same_shape

TOKENS, LITERAL = 9, 4


class OffsetModelContract:
    """Tests that each implementation inherits; all it says is how it is made."""

    # Observations after which the model predicts whatever is not longer than they were.
    enough = 6

    def make(self) -> OffsetModel:
        raise NotImplementedError

    def learned(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> OffsetModel:
        model = self.make()
        for sample in samples(self.enough, seed, dtype):
            model.observe(*sample)
        return model

    def test_knows_nothing_at_first(self) -> None:
        model, base = self.make(), random_kv(TOKENS)
        verdict = model.predictability(base)
        assert not verdict.shareable
        assert verdict.reason
        assert verdict.samples == model.samples == model.nbytes == 0
        with pytest.raises(ValueError):
            model.predict(base)
        with pytest.raises(ValueError):
            model.predict_literal(base, LITERAL)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("tokens", [0, 1, TOKENS])
    def test_predicts_in_the_shape_and_dtype_of_the_base(
        self, tokens: int, dtype: torch.dtype
    ) -> None:
        model, base = self.learned(dtype), random_kv(tokens, 99, dtype)
        offset, literal = model.predict(base), model.predict_literal(base, LITERAL)
        assert same_shape(offset, base)
        assert same_shape(literal, random_kv(LITERAL, 0, dtype))
        for kv in (offset, literal):
            assert not kv.keys[0].any(), "layer 0 is exact"
            assert not kv.values[0].any(), "layer 0 is exact"
            assert kv.keys.isfinite().all()
            assert kv.values.isfinite().all()

    def test_learns_an_offset_that_is_always_the_same(self) -> None:
        model = self.make()
        one, literal = random_kv(1, 7), random_kv(LITERAL, 8)
        always = KV(one.keys.expand(-1, -1, TOKENS, -1), one.values.expand(-1, -1, TOKENS, -1))
        for i in range(self.enough):
            model.observe(random_kv(TOKENS, 100 + i), always, literal)
        base = random_kv(TOKENS - 2, 200)
        # The ridge of a regression and the rounding of a sum leave a little.
        assert equal(model.predict(base), above_zero(always.slice(0, TOKENS - 2)), 1e-3)
        assert equal(model.predict_literal(base, LITERAL), above_zero(literal), 1e-3)

    def test_asking_changes_no_answer_and_no_argument(self) -> None:
        model, base = self.learned(), random_kv(TOKENS - 1, 99)
        size = model.nbytes
        assert size > 0
        first, again = (
            (
                model.predictability(base),
                model.predict(base),
                model.predict_literal(base, LITERAL),
            )
            for _ in range(2)
        )
        assert first[0] == again[0]
        assert equal(first[1], again[1])
        assert equal(first[2], again[2])
        assert equal(base, random_kv(TOKENS - 1, 99))
        assert (model.nbytes, model.samples) == (size, self.enough)

    def test_an_empty_observation_teaches_nothing(self) -> None:
        model = self.make()
        model.observe(random_kv(0), random_kv(0), random_kv(LITERAL))
        assert model.samples == 0
        learned, base = self.learned(), random_kv(TOKENS, 99)
        before = learned.predict(base)
        learned.observe(random_kv(0), random_kv(0), random_kv(LITERAL))
        assert learned.samples == self.enough
        assert equal(learned.predict(base), before)

    def test_a_literal_of_another_length_is_refused_and_none_is_none(self) -> None:
        with pytest.raises(ValueError, match="literal"):
            self.learned().predict_literal(random_kv(TOKENS, 99), LITERAL + 1)
        model = self.make()
        for base, offset, _ in samples(self.enough, 0):
            model.observe(base, offset, random_kv(0))
        assert len(model.predict(random_kv(TOKENS, 99))) == TOKENS

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_its_state_outlives_it(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model, base = self.learned(dtype), random_kv(TOKENS - 1, 99, dtype)
        model.predictability(base)
        save_file(copied(model.state()), tmp_path / "state")
        literal = model.predict_literal(base, LITERAL)
        for other in (self.make(), self.learned(dtype, seed=500)):
            other.load_state(load_file(tmp_path / "state"))
            assert (other.samples, other.nbytes) == (model.samples, model.nbytes)
            assert equal(other.predict(base), model.predict(base), 1e-4)
            assert equal(other.predict_literal(base, LITERAL), literal, 1e-4)
            assert other.predictability(base) == model.predictability(base)
            assert other.state().keys() == model.state().keys()

    def test_a_loaded_model_learns_on_as_the_saved_one_would(self) -> None:
        model, other = self.learned(), self.make()
        other.load_state(copied(model.state()))
        for learner in (model, other):
            for sample in samples(3, 300):
                learner.observe(*sample)
        base = random_kv(TOKENS, 99)
        assert other.samples == model.samples
        assert equal(other.predict(base), model.predict(base), 1e-4)

    def test_merging_is_learning_all_of_it_in_one_place(self) -> None:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
            here, there = self.learned(dtype, seed=0), self.learned(dtype, seed=700)
            both = self.learned(dtype, seed=0)
            for sample in samples(self.enough, 700, dtype):
                both.observe(*sample)
            here.merge(copied(there.state()))
            assert here.samples == both.samples
            assert close(but_errors(here.state()), but_errors(both.state()), tolerance)
            base = random_kv(TOKENS - 1, 99, dtype)
            # One that learns bit by bit may predict by what it knew a little while ago.
            whole = self.make()
            whole.load_state(copied(both.state()))
            assert equal(here.predict(base), whole.predict(base), 1e-6)
            assert equal(
                here.predict_literal(base, LITERAL), both.predict_literal(base, LITERAL), tolerance
            )

    def test_merging_with_nothing_changes_nothing_and_takes_no_hold_of_what_is_given(self) -> None:
        model, other = self.learned(), self.make()
        given = copied(model.state())
        other.merge(given)
        assert close(other.state(), model.state(), 0)
        other.merge(self.make().state())
        assert close(other.state(), model.state(), 0)
        for sample in samples(3, 800):
            other.observe(*sample)
        assert close(given, model.state(), 0)

    def test_what_is_taken_was_observed_here_since_the_last_time(self) -> None:
        model, other = self.make(), self.make()
        assert model.take() == {}
        for number, seed in enumerate((0, 700)):
            for sample in samples(self.enough // 2, seed):
                model.observe(*sample)
            if number == 0:
                model.merge(self.learned(seed=400).state())
            alone = self.make()
            for sample in samples(self.enough // 2, seed):
                alone.observe(*sample)
            taken = model.take()
            other.merge(taken)
            # Errors are those of the model itself, which knows more than one that begins here.
            assert close(but_errors(taken), but_errors(alone.state()), 1e-12)
        assert model.take() == {}
        assert other.samples == 2 * (self.enough // 2)

    def test_exchanging_what_was_taken_doubles_nothing(self) -> None:
        pair, one = (self.make(), self.make()), self.make()
        for model in pair:
            model.take()
        for seed in (0, 300, 600):
            for index, model in enumerate(pair):
                for sample in samples(2, seed + 30 * index):
                    model.observe(*sample)
                    one.observe(*sample)
            taken = [model.take() for model in pair]
            pair[0].merge(copied(taken[1]))
            pair[1].merge(copied(taken[0]))
        assert pair[0].samples == pair[1].samples == one.samples
        self.same_knowledge(pair[0], one)
        self.same_knowledge(pair[1], one)

    def same_knowledge(self, model: OffsetModel, other: OffsetModel) -> None:
        """Two models that learned the same, in another order."""
        assert close(but_errors(model.state()), but_errors(other.state()), 1e-6)

    def test_what_is_kept_to_be_taken_counts_as_memory(self) -> None:
        model = self.make()
        model.take()
        for sample in samples(self.enough, 0):
            model.observe(*sample)
        before = model.nbytes
        model.take()
        assert self.learned().nbytes <= model.nbytes <= before

    def test_a_state_that_does_not_fit_is_not_merged(self) -> None:
        wide = self.make()
        for i in range(self.enough):
            wide.observe(*(random_kv(t, i, heads=3) for t in (TOKENS, TOKENS, LITERAL)))
        with pytest.raises(ValueError):
            self.learned().merge(wide.state())

    def test_a_state_with_a_part_missing_is_an_error(self) -> None:
        state = self.learned().state()
        for name in list(state):
            if name.startswith("literal."):
                continue  # a placeholder may have no literal behind it
            part = {key: tensor for key, tensor in state.items() if key != name}
            with pytest.raises((KeyError, ValueError)):
                self.make().load_state(part)


def samples(
    count: int, seed: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[KV, KV, KV]]:
    """Base, offset, literal: always the same for a seed."""
    for i in range(count):
        base, offset = (random_kv(TOKENS, seed + 3 * i + part, dtype) for part in (0, 1))
        yield base, offset, random_kv(LITERAL, seed + 3 * i + 2, dtype)


State = dict[str, torch.Tensor]


def copied(state: State) -> State:
    """A state as it arrives elsewhere."""
    return {name: tensor.clone() for name, tensor in state.items()}


def close(state: State, other: State, tolerance: float) -> bool:
    """Whether two states have the same tensors, up to a share of the largest number in each."""
    return state.keys() == other.keys() and all(
        tensor.shape == other[name].shape
        and float((tensor - other[name]).abs().max())
        <= tolerance * max(float(tensor.abs().max()), 1e-30)
        for name, tensor in state.items()
        if tensor.numel()
    )


def but_errors(state: State) -> State:
    """A state without the running errors of a model that keeps them."""
    return {
        name: tensor[:2] if name == "counters" else tensor
        for name, tensor in state.items()
        if name != "uses"
    }


def above_zero(kv: KV) -> KV:
    """The same with layer 0 at zero."""
    keys, values = kv.keys.clone(), kv.values.clone()
    keys[0], values[0] = 0, 0
    return KV(keys, values)
