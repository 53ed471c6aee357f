"""Linear offsets: the contract, and what the regression really solves."""

from __future__ import annotations

import pytest
import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets import LinearOffsets, OffsetModel, kind_of, linear
from kvcomm.reuse.offsets.linear import state_bytes
from tests.reuse.kvs import random_kv as kv
from tests.reuse.offsets_conformance import OffsetModelContract


class TestLinear(OffsetModelContract):
    def make(self) -> OffsetModel:
        return LinearOffsets()


def law(base: KV) -> KV:
    """An offset that is linear in the same head's keys and values, zero in layer 0."""
    keys, values = 0.5 * base.values - 0.2 * base.keys, 0.3 * base.keys.flip(3) + 0.1
    keys[0], values[0] = 0, 0
    return KV(keys, values)


EMPTY = kv(0, 0)


def test_a_linear_law_is_found() -> None:
    model = LinearOffsets(ridge=1e-6)
    for seed in range(40):
        base = kv(200, seed)
        model.observe(base, law(base), EMPTY)
    new = kv(50, 999)
    predicted, truth = model.predict(new), law(new)
    # λ = 250 / n of the standardised features shrinks the law by about 3 %.
    for found, right in ((predicted.keys, truth.keys), (predicted.values, truth.values)):
        assert float((found - right).norm() / right.norm()) < 0.05
    assert model.error < 0.05
    assert model.predictability(new).shareable


def test_the_solution_is_that_of_a_plain_ridge_regression() -> None:
    model = LinearOffsets(ridge=0.5)
    base, offset = kv(64, 1), kv(64, 2)
    model.observe(base, offset, EMPTY)
    layers = slice(1, None)
    x, y = (linear.features(part, layers).double() for part in (base, offset))
    for group in range(x.shape[0]):
        mean, scale = x[group].mean(0), x[group].std(0, correction=0)
        z = (x[group] - mean) / scale
        strength = 64 * (0.5 + 250 / 64)
        system = z.T @ z + strength * torch.eye(z.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(system, z.T @ (y[group] - y[group].mean(0)))
        expected = z @ weights + y[group].mean(0)
        found = linear.features(model.predict(base), layers)[group].double()
        assert torch.allclose(found, expected, atol=1e-4)


def test_layers_taken_together_or_alone_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """More layers, and more regressions, than are handled at a time."""

    def learned(layers: int, groups: int) -> tuple[LinearOffsets, KV]:
        monkeypatch.setattr(linear, "LAYERS", layers)
        monkeypatch.setattr(linear, "GROUPS", groups)
        model = LinearOffsets()
        for seed in range(3):
            base = kv(50, seed, layers=12)
            model.observe(base, law(base), EMPTY)
        return model, model.predict(kv(9, 999, layers=12))

    whole, expected = learned(100, 100)
    parts, found = learned(4, 3)
    assert torch.allclose(found.keys, expected.keys, atol=1e-5)
    assert torch.allclose(found.values, expected.values, atol=1e-5)
    assert found.keys[1:].abs().amin(dim=(1, 2, 3)).gt(0).all()
    assert (parts.error, parts.tokens) == (pytest.approx(whole.error, rel=1e-5), 150)


def test_placeholders_of_one_kind_learn_together() -> None:
    assert kind_of("passage_3") == kind_of("passage_12") == kind_of("passage") == "passage"
    assert kind_of("solver@1") == kind_of("solver2@2") == "solver"
    assert kind_of("2") == "2"


@pytest.mark.parametrize(("heads", "dim"), [(2, 4), (8, 40)])
def test_the_bytes_of_a_kind_are_known_and_do_not_grow(heads: int, dim: int) -> None:
    model = LinearOffsets()
    for tokens in (20, 5, 30):
        base, offset = (KV(*torch.randn(2, 3, heads, tokens, dim)) for _ in range(2))
        model.observe(base, offset, base.slice(0, 0))
        assert model.nbytes == state_bytes(3, heads, dim)


def test_a_merged_error_is_that_of_the_latest_samples_wherever_they_were_seen() -> None:
    noise, lawful = LinearOffsets(), LinearOffsets()
    for seed in range(40):
        noise.observe(kv(20, seed), kv(20, 100 + seed), EMPTY)
        base = kv(20, 200 + seed)
        lawful.observe(base, law(base), EMPTY)
    assert lawful.error < 0.5 < noise.error
    noise.merge(lawful.state())
    assert noise.error < 0.3


def test_samples_kept_to_be_taken_have_the_errors_of_the_model() -> None:
    model, other = LinearOffsets(), LinearOffsets()
    for seed in range(40):
        base = kv(20, seed)
        model.observe(base, law(base), EMPTY)
        if seed == 29:
            model.take()
    other.merge(model.take())
    assert other.samples == 10
    assert other.error == pytest.approx(model.error, abs=0.05)
