"""The self-check: who may reuse KV, and what happens to those who may not."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.load import check_model, load_engine
from kvcomm.engine.local import attention, check
from kvcomm.kv import Rope
from tests.engine.support import DENSE, answer, answered, generate, ids_of, segment, spec
from tests.support import shapes


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", shapes("llama-tiny"))
def test_supported_models_pass_in_every_dtype(shape: str, dtype: str) -> None:
    result = check_model(f"random:{shape}", dtype=dtype, device="cpu")
    assert result.reuse_ok, result.reason
    assert set(result.measured) == {"key_error", "compose_error"}
    assert result.kv_bytes_per_token == 2 * 3 * 2 * 16 * getattr(torch, dtype).itemsize


SMALL = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4}, "no rotary embedding"),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}, "s_aux"),
        ("gemma2", {}, "caps logits"),
    ],
)
def test_other_architectures_are_refused_with_a_reason(
    kind: str, fields: dict[str, object], why: str
) -> None:
    made = {**SMALL, "bos_token_id": None, "eos_token_id": None, **fields}
    config = AutoConfig.for_model(kind, **made)
    found = check.self_check(AutoModelForCausalLM.from_config(config).eval())
    assert not found.ok
    assert why in found.reason


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("deepseek_v3", "latent attention"),
        ("falcon_h1", "keep a state"),
        ("qwen3_next", "linear_attention"),
        ("gemma3n_text", "share KV"),
        ("t5", "encoder-decoder"),
    ],
)
def test_configs_are_refused_before_anything_is_measured(kind: str, why: str) -> None:
    reason = check.refusal(AutoConfig.for_model(kind), object)
    assert why in reason


@pytest.mark.parametrize(
    ("shape", "why"),
    [("llama", "do not move with their position"), ("mistral", "composed prompt differs")],
)
def test_a_model_that_is_not_understood_is_caught(
    shape: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shape == "llama":
        right = Rope.from_model
        wrong = lambda model: Rope(right(model).inv_freq * 1.01, right(model).scaling)  # noqa: E731
        monkeypatch.setattr(Rope, "from_model", wrong)
    else:  # without its window the composed prompt is wrong beyond it
        mask = attention.Pack.mask
        monkeypatch.setattr(attention, "first_slot", lambda part, window: 0)
        monkeypatch.setattr(
            attention.Pack, "mask", lambda self, i, window, like: mask(self, i, None, like)
        )
    result = check_model(f"random:{shape}-tiny", device="cpu")
    assert not result.reuse_ok
    assert why in result.reason


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("llama-dynamic-tiny", "change with the prompt's length (dynamic)"),
        ("mamba-tiny", "keep a state"),
    ],
)
def test_refused_models_run_dense_with_the_tokens_of_generate(
    shape: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why in check_model(f"random:{shape}", device="cpu").reason
    ids = list(range(20, 60))

    async def said() -> list[int]:
        seq = engine.open(spec(80))
        await seq.extend([segment(ids)], DENSE, last=answer(16))
        return ids_of(await answered(seq))

    with load_engine(f"random:{shape}", device="cpu") as engine:
        assert isinstance(engine, DenseEngine)
        assert not engine.capabilities.reuse
        assert not engine.capabilities.exact
        assert asyncio.run(said()) == generate(engine, ids, 16)
        broken = mock.Mock(side_effect=RuntimeError("broken"))
        monkeypatch.setattr(engine.network, "generate", broken)
        with pytest.raises(RuntimeError, match="broken"):
            asyncio.run(said())
