"""Models with random weights: shapes to test with, and shapes to time with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    # Wider than usual, so that random weights give logits with clear winners.
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | fields}


_LLAMA3 = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
_LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_QWEN25 = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}
_SHORT = {"original_max_position_embeddings": 32}
_WINDOW = {"sliding_window": 24}
_GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tiny": ("llama", _TINY),
    "mistral-tiny": ("mistral", _TINY | _WINDOW),
    "qwen2-tiny": ("qwen2", _TINY),
    "qwen3-tiny": ("qwen3", _TINY),
    "llama3-tiny": ("llama", _TINY | _rope("llama3", **(_LLAMA3_ROPE | _SHORT))),
    "yarn-tiny": ("llama", _TINY | _rope("yarn", factor=4.0, **_SHORT)),
    # Two rotary types, windows in two layers of three.
    "gemma3-tiny": (
        "gemma3_text",
        {**_TINY, **_WINDOW, "layer_types": _GEMMA3_LAYERS, "query_pre_attn_scalar": 16},
    ),
    # The middle layer has no rotary embedding.
    "smollm3-tiny": ("smollm3", {**_TINY, "no_rope_layers": [1, 0, 1]}),
    # Half of the dimensions are rotated; in glm neighbours make pairs.
    "phi-tiny": ("phi", {**_TINY, "partial_rotary_factor": 0.5}),
    "glm-tiny": ("glm", {**_TINY, "partial_rotary_factor": 0.5}),
    # Refused for reuse: its rotary frequencies change with the prompt's length.
    "llama-dynamic-tiny": ("llama", _TINY | _rope("dynamic", factor=2.0)),
    # Refused for reuse: it keeps a recurrent state and no KV.
    "mamba-tiny": (
        "mamba",
        {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    "smollm2-135m": ("llama", _SMOLLM2 | _rope("default", rope_theta=100000.0)),
    "llama-3.1-8b": ("llama", _LLAMA3 | _rope("llama3", **_LLAMA3_ROPE)),
    "qwen2.5-7b": ("qwen2", _QWEN25 | _rope("default", rope_theta=1000000.0)),
}


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model of a named shape with seeded random weights, and a byte tokenizer for it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from kvcomm.engine.tokens import byte_tokenizer

    kind, fields = SHAPES[shape]
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        kind,
        **fields,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device(device), torch.random.fork_rng(enabled=True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval(), tokenizer
