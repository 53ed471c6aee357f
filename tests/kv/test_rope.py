"""Rotary embeddings: on and off again, as the models themselves do it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from kvcomm.kv import Rope

LAYERS, HEADS, DIM = 3, 2, 8

# Largest error of keys of size one. float64 keys turn by float32 angles, as models turn them, so
# sin² + cos² is 1 to about 1e-7 only.
TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 2e-6,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def keys_of(tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(LAYERS, HEADS, tokens, DIM, generator=generator, dtype=torch.float64)
    return (2 * keys - 1).to(dtype)


def rope_of(*, rotary: int = DIM, per_layer: bool = False, none: int | None = None, **options: Any):
    """Frequencies of RoPE with θ = 10,000, slower in each layer where `per_layer`."""
    freqs = 10_000.0 ** -(torch.arange(0, rotary, 2) / rotary)
    rows = torch.stack([freqs / (1 + layer) for layer in range(LAYERS if per_layer else 1)])
    scaling = torch.full((len(rows),), options.pop("scaling", 1.0))
    if none is not None:
        rows, scaling = rows.repeat(LAYERS // len(rows), 1), scaling.repeat(LAYERS // len(scaling))
        rows[none], scaling[none] = 0, 1
    return Rope(rows, scaling, **options)


KINDS = {
    "plain": rope_of(),
    "interleaved": rope_of(interleaved=True),
    "partial": rope_of(rotary=4),
    "partial interleaved": rope_of(rotary=6, interleaved=True),
    "own frequencies a layer": rope_of(per_layer=True),
    "a layer without": rope_of(none=1),
    "scaled": rope_of(scaling=1.3),
    "all of it": rope_of(rotary=4, per_layer=True, none=2, scaling=0.7, interleaved=True),
}


def reference(rope: Rope, keys: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """Each pair of dimensions turned as a complex number, in float64."""
    out = keys.double().clone()
    half = rope.rotary_dim // 2
    for layer in range(LAYERS):
        row = layer if len(rope.inv_freq) > 1 else 0
        for token, position in enumerate(positions):
            for pair in range(half):
                a, b = (2 * pair, 2 * pair + 1) if rope.interleaved else (pair, pair + half)
                angle = position * rope.inv_freq[row, pair].double()
                turn = torch.polar(rope.scaling[row].double(), angle)
                vector = torch.complex(
                    keys[layer, :, token, a].double(), keys[layer, :, token, b].double()
                )
                out[layer, :, token, a] = (vector * turn).real
                out[layer, :, token, b] = (vector * turn).imag
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_keys_turn_as_complex_numbers(kind: str) -> None:
    rope, keys = KINDS[kind], keys_of(4)
    positions = [0, 1, 37, 900]
    turned = rope.rotate(keys, positions)
    # float32 angles at position 900 are right to 3e-5.
    torch.testing.assert_close(turned.double(), reference(rope, keys, positions), rtol=0, atol=1e-4)
    assert (turned - keys).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@given(positions=st.lists(st.integers(0, 100_000), max_size=5), dtype=st.sampled_from([*TOLERANCE]))
@settings(max_examples=40, deadline=None)
def test_unrotate_undoes_rotate(kind: str, dtype: torch.dtype, positions: list[int]) -> None:
    rope, keys = KINDS[kind], keys_of(len(positions), dtype)
    for there, back in ((rope.rotate, rope.unrotate), (rope.unrotate, rope.rotate)):
        again = back(there(keys, positions), positions)
        assert again.dtype == dtype
        torch.testing.assert_close(again, keys, rtol=0, atol=2 * TOLERANCE[dtype])
    assert torch.equal(keys, keys_of(len(positions), dtype)), "what is given is not changed"


# --- against the models ---


SCALED = {"factor": 4.0, "original_max_position_embeddings": 64}
TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": SCALED,
}


@pytest.mark.parametrize("kind", TYPES)
def test_the_same_as_transformers(kind: str) -> None:
    parameters = {"rope_theta": 10_000.0, "rope_type": kind, **TYPES[kind]}
    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=3, rope_parameters=parameters
    )
    module, keys = LlamaRotaryEmbedding(config), keys_of(6)
    decoder = SimpleNamespace(rotary_emb=module)
    rope = Rope.from_model(SimpleNamespace(config=config, get_decoder=lambda: decoder))
    positions = torch.tensor([0, 3, 4, 60, 200, 201])
    cos, sin = module(keys, positions[None])
    _, theirs = apply_rotary_pos_emb(keys, keys, cos, sin)
    torch.testing.assert_close(rope.rotate(keys, positions), theirs, rtol=0, atol=1e-6)
    assert rope.inv_freq.shape == (1, 4), "all layers share their frequencies"
    assert (float(rope.scaling) != 1) == (kind == "yarn")
