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
from tests.reuse.kvs import checksum_of, equal, random_kv

CPU = torch.device("cpu")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    with mps.Mps():
        yield


def there(kv: KV) -> KV:
    return KV(mps.on_mps(kv.keys), mps.on_mps(kv.values))


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("shape", ["llama-tiny", "gemma3-tiny"])
def test_a_model_on_a_mac_passes_the_self_check(shape: str) -> None:
    model, _ = random_model(shape, CPU, torch.float32)
    mps.move(model)
    found = self_check(model)
    assert found.rope, found.reason
    assert found.rope.inv_freq.device.type == "mps"


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("family", FAMILIES)
def test_offset_models_learn_the_same(family: str, tmp_path: Path) -> None:
    here, away, again, merged = (FAMILIES[family]() for _ in range(4))
    for seed in range(4):
        parts = [random_kv(12, 3 * seed + part) for part in range(3)]
        here.observe(*[KV(kv.keys.clone(), kv.values.clone()) for kv in parts])
        away.observe(*map(there, parts))
    state = {name: tensor.cpu() for name, tensor in away.state().items()}
    save_tensors(tmp_path / "x", state, "test")
    again.load_state(load_tensors(tmp_path / "x", "test", "mps")[0])
    merged.merge({name: place(tensor, mps.MPS) for name, tensor in state.items()})
    base = random_kv(12, 50)
    for model in (away, again, merged):
        assert model.predictability(there(base)).shareable == here.predictability(base).shareable
        found = model.predict(there(base))
        assert found.keys.device.type == "mps"
        assert equal(KV(found.keys.cpu(), found.values.cpu()), here.predict(base), 1e-6)


@pytest.mark.usefixtures("mac")
def test_sums_and_checksums_are_the_same_wherever_the_numbers_are() -> None:
    small = torch.full((1000,), 0.1)
    assert wide(small).sum() == wide(mps.on_mps(small)).sum() == small.double().sum()
    assert place(small, mps.MPS).device.type == "mps"
    assert place(small.double(), mps.MPS).device == CPU
    kv = random_kv(12, 7)
    assert checksum_of(there(kv)) == checksum_of(kv)
    dense, other = (random_kv(12, seed).keys.reshape(24, -1) for seed in (1, 2))
    assert divergence(mps.on_mps(dense), mps.on_mps(other)) == divergence(dense, other)


def test_float64_on_a_mac_is_refused_with_what_to_type() -> None:
    with pytest.raises(ModelError, match="mps has no float64: use float32 or float16"):
        load._dtype("float64", mps.MPS)
    assert load._dtype("float64", CPU) == torch.float64
