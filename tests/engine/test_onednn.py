"""Linear layers by oneDNN against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kvcomm.engine.local import LocalEngine, onednn
from kvcomm.engine.local.onednn import OneDnnLinear, use_onednn
from tests.support import python

pytestmark = pytest.mark.skipif(not onednn.usable(), reason="this build of PyTorch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 16, 300])
@pytest.mark.parametrize("size", [80, 8192])
def test_the_product_is_the_same(rows: int, size: int, bias: bool) -> None:
    """Also of inputs that are not contiguous, and of none."""
    layer = nn.Linear(48, size, bias=bias)
    given = torch.randn(1, rows, 48), torch.randn(rows, 48), torch.randn(48, rows).t()
    with torch.inference_mode():
        expected = [layer(inputs) for inputs in given]
        use_onednn(layer)
        assert isinstance(layer, OneDnnLinear)
        for inputs, product in zip(given, expected, strict=True):
            found = layer(inputs)
            assert found.shape == product.shape
            assert torch.allclose(found, product, atol=1e-5)
        assert layer(given[1][:0]).shape == (0, size)


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
    grown = python(program)
    assert int(grown.stdout) < 16e6  # with all of them kept it is over 60 MB


def test_layers_of_other_kinds_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of them in a build without the operator."""

    class Special(nn.Linear):
        pass

    for usable, kind in ((True, OneDnnLinear), (False, nn.Linear)):
        monkeypatch.setattr(onednn, "usable", lambda usable=usable: usable)
        model = nn.Sequential(Special(4, 4), nn.Linear(4, 4))
        use_onednn(model)
        assert [type(module) for module in model] == [Special, kind]


@pytest.mark.parametrize(("dtype", "used"), [("float32", True), ("float64", False)])
def test_models_in_float32_on_a_cpu_use_them(
    engine_of: Callable[..., LocalEngine], dtype: str, used: bool
) -> None:
    engine = engine_of("random:llama-tiny", dtype)
    kinds = {type(m) for m in engine.network.modules() if isinstance(m, nn.Linear)}
    assert kinds == {OneDnnLinear if used else nn.Linear}
