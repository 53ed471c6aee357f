"""Linear layers of few rows against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kvcomm.engine.few_rows import MOST, MOST_TALL, TALL, FewRowsLinear, use_few_rows
from kvcomm.engine.local import LocalEngine


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, MOST, MOST + 1, MOST_TALL, MOST_TALL + 1])
@pytest.mark.parametrize("size", [80, TALL])
def test_the_product_is_the_same(rows: int, size: int, bias: bool) -> None:
    plain = nn.Linear(48, size, bias=bias)
    inputs = torch.randn(1, rows, 48)
    expected = plain(inputs)
    use_few_rows(plain)
    assert isinstance(plain, FewRowsLinear)
    found = plain(inputs)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(plain(inputs[0]), expected[0], atol=1e-5)


def test_inputs_that_are_not_contiguous() -> None:
    layer = nn.Linear(48, 80)
    inputs = torch.randn(48, 3).t()
    expected = layer(inputs)
    use_few_rows(layer)
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4))
    use_few_rows(model)
    assert [type(module) for module in model] == [Special, FewRowsLinear]


@pytest.mark.parametrize(("dtype", "used"), [("float32", True), ("float64", False)])
def test_models_in_float32_on_a_cpu_use_them(
    engine_of: Callable[..., LocalEngine], dtype: str, used: bool
) -> None:
    engine = engine_of("random:llama-tiny", dtype)
    kinds = {type(m) for m in engine.network.modules() if isinstance(m, nn.Linear)}
    assert kinds == {FewRowsLinear if used else nn.Linear}
