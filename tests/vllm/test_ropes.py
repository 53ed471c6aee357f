"""Keys are rotated by the server's own table."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcomm.kv import Rope
from kvcomm.vllm.ropes import TableRope, rope_of

DIM, PLACES = 8, 200
FREQ = 1.0 / 100.0 ** (torch.arange(0, DIM, 2).float() / DIM)


class RotaryEmbedding:
    """As vLLM's: a table, and keys `[tokens, dim]` rotated by it."""

    head_size = DIM

    def __init__(self, *, neox: bool = True, scale: float = 1.0, dtype: Any = torch.float32,
                 rotary: int = DIM) -> None:  # fmt: skip
        angle = torch.arange(PLACES).float()[:, None] * FREQ[: rotary // 2]
        table = torch.cat([angle.cos(), angle.sin()], dim=-1) * scale
        self.cos_sin_cache = table.to(dtype)
        self.is_neox_style = neox

    def forward_native(self, places: Any, query: Any, key: Any) -> Any:
        cos, sin = self.cos_sin_cache[places].chunk(2, dim=-1)
        rotary = 2 * cos.shape[-1]
        head, rest = key[..., :rotary], key[..., rotary:]
        if self.is_neox_style:
            one, other = head.chunk(2, dim=-1)
            turned = torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
        else:
            one, other = head[..., ::2], head[..., 1::2]
            turned = torch.stack([one * cos - other * sin, other * cos + one * sin], dim=-1)
            turned = turned.flatten(-2)
        return query, torch.cat([turned, rest], dim=-1)


class Llama3RotaryEmbedding(RotaryEmbedding):
    """Rotates the other way round than its table says."""

    def forward_native(self, places: Any, query: Any, key: Any) -> Any:
        return query, super().forward_native(-places % PLACES, query, key)[1]


class DynamicNTKScalingRotaryEmbedding(RotaryEmbedding):
    """Not one that can be moved."""


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("rotary", [DIM, 4])
def test_it_rotates_as_kvcomms_own(neox: bool, rotary: int) -> None:
    found = rope_of([RotaryEmbedding(neox=neox, rotary=rotary)], DIM)
    own = Rope(FREQ[None, : rotary // 2], torch.ones(1), interleaved=not neox)
    keys = torch.randn(2, 3, 11, DIM)
    turned = found.rotate(keys, 40)
    assert torch.allclose(turned, own.rotate(keys, range(40, 51)), atol=1e-5)
    assert torch.allclose(found.unrotate(turned, 40), keys, atol=1e-5)
    assert torch.allclose(found.move(turned, 40, 9), found.rotate(keys, 9), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_inverse_knows_scale_and_rounding(scale: float) -> None:
    found = rope_of([RotaryEmbedding(scale=scale, dtype=torch.bfloat16)], DIM)
    keys = torch.randn(1, 1, 5, DIM)
    assert torch.allclose(found.unrotate(found.rotate(keys, 100), 100), keys, atol=1e-5)
    assert torch.allclose(
        found.move(found.rotate(keys, 100), 100, 7), found.rotate(keys, 7), atol=1e-5
    )
    assert found.to(torch.device("cpu")).table.dtype == torch.bfloat16


def test_what_cannot_be_moved_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rotary"):
        rope_of([], DIM)
    with pytest.raises(ValueError, match="2 rotary"):
        rope_of([RotaryEmbedding(), RotaryEmbedding()], DIM)
    with pytest.raises(ValueError, match="Dynamic"):
        rope_of([DynamicNTKScalingRotaryEmbedding()], DIM)
    with pytest.raises(ValueError, match="not as it was read"):
        rope_of([Llama3RotaryEmbedding()], DIM)
    with pytest.raises(ValueError, match="cannot be moved"):
        rope_of([RotaryEmbedding()], DIM * 2)
    with pytest.raises(ValueError, match="cannot be moved"):
        rope_of([SimpleNamespace(head_size=DIM)], DIM)
    several = RotaryEmbedding()
    several.scaling_factors = [1, 2]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="several"):
        rope_of([several], DIM)


def test_a_table_is_read_from_a_place_on() -> None:
    rope = TableRope(RotaryEmbedding().cos_sin_cache)
    keys = torch.randn(4, DIM)
    all_at_once = rope.rotate(keys, 7)
    one_by_one = torch.cat([rope.rotate(keys[i : i + 1], 7 + i) for i in range(4)])
    assert torch.equal(all_at_once, one_by_one)
