"""Linear layers by oneDNN against PyTorch's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kvcomm.engine.local import LocalEngine, onednn
from kvcomm.engine.local.onednn import OneDnnLinear, use_onednn

pytestmark = pytest.mark.skipif(not onednn.usable(), reason="this build of PyTorch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 300])
@pytest.mark.parametrize("size", [80, 8192])
def test_the_product_is_the_same(rows: int, size: int, bias: bool) -> None:
    plain = nn.Linear(48, size, bias=bias)
    inputs = torch.randn(1, rows, 48)
    with torch.inference_mode():
        expected = plain(inputs)
        use_onednn(plain)
        assert isinstance(plain, OneDnnLinear)
        found = plain(inputs)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(plain(inputs[0]), expected[0], atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_numbers_of_rows_that_were_seen() -> None:
    """In a process of its own: how much is kept is settled by the first product."""
    program = """
import torch
from torch import nn
from kvcomm.engine.local.memory import release_unused
from kvcomm.engine.local.onednn import use_onednn

layer = nn.Linear(576, 576)
use_onednn(layer)

def resident(rows):
    with torch.inference_mode():
        for n in rows:
            layer(torch.randn(n, 576))
    release_unused(torch.device("cpu"))
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident(range(1, 200))
print(resident(range(200, 400)) - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(grown.stdout) < 16e6  # with all of them kept it is over 60 MB


def test_inputs_that_are_not_contiguous_and_none_at_all() -> None:
    layer = nn.Linear(48, 80)
    inputs = torch.randn(48, 3).t()
    with torch.inference_mode():
        expected = layer(inputs)
        use_onednn(layer)
        assert torch.allclose(layer(inputs), expected, atol=1e-5)
        assert layer(inputs[:0]).shape == (0, 80)


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4))
    use_onednn(model)
    assert [type(module) for module in model] == [Special, OneDnnLinear]


def test_a_build_without_the_operator_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "usable", lambda: False)
    layer = nn.Linear(4, 4)
    use_onednn(layer)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(("dtype", "used"), [("float32", True), ("float64", False)])
def test_models_in_float32_on_a_cpu_use_them(
    engine_of: Callable[..., LocalEngine], dtype: str, used: bool
) -> None:
    engine = engine_of("random:llama-tiny", dtype)
    kinds = {type(m) for m in engine.network.modules() if isinstance(m, nn.Linear)}
    assert kinds == {OneDnnLinear if used else nn.Linear}
