"""Rotary embeddings: on and off again, as the models themselves do it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3TextConfig, LlamaConfig, SmolLM3Config
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved_rotary
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as partial_rotary
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RotaryEmbedding

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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@given(positions=st.lists(st.integers(0, 100_000), max_size=5))
@settings(max_examples=15, deadline=None)
def test_unrotate_undoes_rotate(kind: str, dtype: torch.dtype, positions: list[int]) -> None:
    rope, keys = KINDS[kind], keys_of(len(positions), dtype)
    for there, back in ((rope.rotate, rope.unrotate), (rope.unrotate, rope.rotate)):
        again = back(there(keys, positions), positions)
        assert again.dtype == dtype
        torch.testing.assert_close(again, keys, rtol=0, atol=2 * TOLERANCE[dtype])


def test_what_has_no_rotation_passes_through() -> None:
    keys = keys_of(3)
    assert torch.equal(rope_of(rotary=4).rotate(keys, [5, 6, 7])[..., 4:], keys[..., 4:])
    turned = rope_of(none=1, scaling=1.3).rotate(keys, [5, 6, 7])
    assert torch.equal(turned[1], keys[1])
    assert not torch.equal(turned[0], keys[0])


def test_the_keys_given_are_not_changed() -> None:
    keys = keys_of(3)
    copy = keys.clone()
    KINDS["partial"].rotate(keys, [1, 2, 3])
    KINDS["partial"].unrotate(keys, torch.tensor([1, 2, 3]))
    assert torch.equal(keys, copy)


# --- against the models ---


def model_like(config: Any, rotary: Any) -> Any:
    """The parts of a model that `Rope.from_model` reads."""
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, get_decoder=lambda: SimpleNamespace(rotary_emb=rotary))


def llama(**options: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=3, **options
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_the_same_as_transformers(kind: str, dtype: torch.dtype) -> None:
    rope_parameters = {
        "default": {"rope_type": "default"},
        "linear": {"rope_type": "linear", "factor": 2.0},
        "llama3": LLAMA3,
        "yarn": YARN,
    }[kind]
    config = llama(rope_parameters={"rope_theta": 10_000.0, **rope_parameters})
    module = LlamaRotaryEmbedding(config)
    rope, keys = Rope.from_model(model_like(config, module)), keys_of(6, dtype)
    positions = torch.tensor([0, 3, 4, 60, 200, 201])
    cos, sin = module(keys, positions[None])
    _, theirs = apply_rotary_pos_emb(keys, keys, cos, sin)
    # The model rounds sin and cos to bf16 before it turns bf16 keys.
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(rope.rotate(keys, positions), theirs, rtol=0, atol=tolerance)
    assert rope.inv_freq.shape == (1, 4), "all layers share their frequencies"
    assert (float(rope.scaling) != 1) == (kind == "yarn")


def test_interleaved_and_partial_as_transformers() -> None:
    positions, keys = torch.tensor([0, 5, 77]), keys_of(3)
    for apply, rope in (
        (interleaved_rotary, rope_of(interleaved=True)),
        (partial_rotary, rope_of(rotary=4, interleaved=True)),
    ):
        angle = positions[:, None] * rope.inv_freq
        spread = angle.repeat_interleave(2, dim=-1)
        if apply is partial_rotary:
            spread = torch.cat([angle, angle], dim=-1)
        _, theirs = apply(keys, keys, spread.cos()[None], spread.sin()[None])
        torch.testing.assert_close(rope.rotate(keys, positions), theirs, rtol=0, atol=1e-6)


def test_layers_of_two_rotary_types() -> None:
    config = Gemma3TextConfig(
        hidden_size=16,
        head_dim=8,
        num_attention_heads=2,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    module = Gemma3RotaryEmbedding(config)
    rope, keys = Rope.from_model(model_like(config, module)), keys_of(3)
    positions = torch.tensor([0, 5, 77])
    turned = rope.rotate(keys, positions)
    for layer, kind in enumerate(config.layer_types):
        cos, sin = module(keys, positions[None], kind)
        _, theirs = apply_rotary_pos_emb(keys[layer][None], keys[layer][None], cos, sin)
        torch.testing.assert_close(turned[layer], theirs[0], rtol=0, atol=1e-6)
    assert rope.inv_freq.shape == (3, 4)
    assert not torch.equal(rope.inv_freq[0], rope.inv_freq[1])


def test_layers_without_rotary_embedding() -> None:
    config = SmolLM3Config(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=3, no_rope_layers=[1, 0, 1]
    )
    rope = Rope.from_model(model_like(config, SmolLM3RotaryEmbedding(config)))
    assert [bool(row.any()) for row in rope.inv_freq] == [True, False, True]


def test_a_model_without_rotary_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="no rotary embedding"):
        Rope.from_model(model_like(llama(), None))
