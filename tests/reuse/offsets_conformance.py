"""What every offset model promises: `kvcomm.reuse.offsets.base.OffsetModel` as tests.

class TestMine(OffsetModelContract):
    def make(self) -> OffsetModel:
        return Mine()
"""

from __future__ import annotations

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
        for i in range(self.enough):
            model.observe(
                random_kv(TOKENS, seed + 3 * i, dtype),
                random_kv(TOKENS, seed + 3 * i + 1, dtype),
                random_kv(LITERAL, seed + 3 * i + 2, dtype),
            )
        return model

    def test_knows_nothing_at_first(self) -> None:
        model, base = self.make(), random_kv(TOKENS)
        verdict = model.verdict(base)
        assert not verdict.shareable
        assert verdict.reason
        assert verdict.samples == model.samples == model.nbytes == 0
        with pytest.raises(ValueError):
            model.predict(base)
        with pytest.raises(ValueError):
            model.predict_literal(base, LITERAL)

    def test_counts_what_it_learned(self) -> None:
        model = self.learned()
        assert model.samples == self.enough
        assert model.nbytes > 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
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
        copy = KV(base.keys.clone(), base.values.clone())
        size, samples = model.nbytes, model.samples
        first = model.verdict(base), model.predict(base), model.predict_literal(base, LITERAL)
        again = model.verdict(base), model.predict(base), model.predict_literal(base, LITERAL)
        assert first[0] == again[0]
        assert equal(first[1], again[1])
        assert equal(first[2], again[2])
        assert equal(base, copy)
        assert (model.nbytes, model.samples) == (size, samples)

    def test_an_empty_observation_teaches_nothing(self) -> None:
        model = self.make()
        model.observe(random_kv(0), random_kv(0), random_kv(LITERAL))
        assert model.samples == 0
        learned, base = self.learned(), random_kv(TOKENS, 99)
        before = learned.predict(base)
        learned.observe(random_kv(0), random_kv(0), random_kv(LITERAL))
        assert learned.samples == self.enough
        assert equal(learned.predict(base), before)

    def test_a_literal_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="literal"):
            self.learned().predict_literal(random_kv(TOKENS, 99), LITERAL + 1)

    def test_a_placeholder_at_the_end_has_no_literal(self) -> None:
        model = self.make()
        for i in range(self.enough):
            model.observe(random_kv(TOKENS, i), random_kv(TOKENS, 50 + i), random_kv(0))
        assert len(model.predict(random_kv(TOKENS, 99))) == TOKENS

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_its_state_outlives_it(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model, base = self.learned(dtype), random_kv(TOKENS - 1, 99, dtype)
        model.verdict(base)
        save_file({k: v.clone() for k, v in model.state().items()}, tmp_path / "state")
        for other in (self.make(), self.learned(dtype, seed=500)):
            other.load_state(load_file(tmp_path / "state"))
            assert other.samples == model.samples
            assert other.nbytes == model.nbytes
            assert equal(other.predict(base), model.predict(base), 1e-4)
            assert equal(
                other.predict_literal(base, LITERAL), model.predict_literal(base, LITERAL), 1e-4
            )
            assert other.verdict(base) == model.verdict(base)
            state, kept = other.state(), model.state()
            assert state.keys() == kept.keys()

    def test_a_loaded_model_learns_on_as_the_saved_one_would(self) -> None:
        model, other = self.learned(), self.make()
        other.load_state({name: tensor.clone() for name, tensor in model.state().items()})
        for learner in (model, other):
            for i in range(3):
                learner.observe(
                    random_kv(TOKENS, 300 + i), random_kv(TOKENS, 310 + i), random_kv(LITERAL, i)
                )
        base = random_kv(TOKENS, 99)
        assert other.samples == model.samples
        assert equal(other.predict(base), model.predict(base), 1e-4)

    def test_a_state_with_a_part_missing_is_an_error(self) -> None:
        state = self.learned().state()
        for name in list(state):
            if name.startswith("literal."):
                continue  # a placeholder may have no literal behind it
            part = {key: tensor for key, tensor in state.items() if key != name}
            with pytest.raises((KeyError, ValueError)):
                self.make().load_state(part)


def above_zero(kv: KV) -> KV:
    """The same with layer 0 at zero."""
    keys, values = kv.keys.clone(), kv.values.clone()
    keys[0], values[0] = 0, 0
    return KV(keys, values)
