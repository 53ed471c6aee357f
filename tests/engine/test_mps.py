"""A Mac's device has no float64: what sums in it does so on the CPU, and finds the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcomm.engine.local import load
from kvcomm.engine.local.check import self_check
from kvcomm.engine.local.divergence import divergence
from kvcomm.engine.shapes import random_model
from kvcomm.errors import ModelError
from kvcomm.kv import KV
from kvcomm.kv.files import load_tensors, save_tensors
from kvcomm.kv.precision import place, wide
from kvcomm.reuse.offsets import FAMILIES
from tests import mps
from tests.reuse.kvs import checksum_of

CPU = torch.device("cpu")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    with mps.Mps():
        yield


def there(kv: KV) -> KV:
    return KV(mps.on_mps(kv.keys), mps.on_mps(kv.values))


def drawn(seed: int, tokens: int = 12) -> KV:
    generator = torch.Generator().manual_seed(seed)
    return KV(*(torch.randn(3, 2, tokens, 4, generator=generator) for _ in range(2)))


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("shape", ["llama-tiny", "gemma3-tiny"])
def test_a_model_on_a_mac_passes_the_self_check(shape: str) -> None:
    model, _ = random_model(shape, CPU, torch.float32)
    mps.move(model)
    found = self_check(model)
    assert found.rope, found.reason
    assert found.rope.inv_freq.device.type == "mps"


@pytest.mark.usefixtures("mac")
def test_a_divergence_is_the_same() -> None:
    dense, other = (drawn(seed).keys.reshape(24, -1) for seed in (1, 2))
    assert divergence(mps.on_mps(dense), mps.on_mps(other)) == divergence(dense, other)


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("family", FAMILIES)
def test_offset_models_learn_the_same(family: str, tmp_path: Path) -> None:
    here, away = FAMILIES[family](), FAMILIES[family]()
    for seed in range(4):
        parts = [drawn(3 * seed + part) for part in range(3)]
        here.observe(*[KV(kv.keys.clone(), kv.values.clone()) for kv in parts])
        away.observe(*map(there, parts))
    base = drawn(50)
    path = tmp_path / "learned.safetensors"
    save_tensors(path, {name: t.cpu() for name, t in away.state().items()}, "test")
    again = FAMILIES[family]()
    again.load_state(load_tensors(path, "test", "mps")[0])
    merged = FAMILIES[family]()
    merged.merge({name: place(t.cpu(), mps.MPS) for name, t in away.state().items()})
    wanted = here.predict(base)
    for model in (away, again, merged):
        assert model.predictability(there(base)).shareable == here.predictability(base).shareable
        found = model.predict(there(base))
        assert found.keys.device.type == "mps"
        assert torch.allclose(found.keys.cpu(), wanted.keys, atol=1e-6)
        assert torch.allclose(found.values.cpu(), wanted.values, atol=1e-6)


@pytest.mark.usefixtures("mac")
def test_sums_are_in_float64_wherever_the_numbers_are() -> None:
    small = torch.full((1000,), 0.1)
    assert wide(small).sum() == wide(mps.on_mps(small)).sum() == small.double().sum()
    assert place(small, mps.MPS).device.type == "mps"
    assert place(small.double(), mps.MPS).device == CPU


@pytest.mark.usefixtures("mac")
def test_kv_has_the_same_checksum() -> None:
    kv = drawn(7)
    assert checksum_of(there(kv)) == checksum_of(kv)


def test_float64_on_a_mac_is_refused_with_what_to_type() -> None:
    with pytest.raises(ModelError, match="mps has no float64: use float32 or float16"):
        load._dtype("float64", mps.MPS)
    assert load._dtype("float64", CPU) == torch.float64
