"""The self-check: who may reuse KV, and what happens to those who may not."""

from __future__ import annotations

import asyncio
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.load import check_model, load_engine
from kvcomm.engine.local import check
from kvcomm.kv import Rope
from tests.engine.support import DENSE, answer, answered, ids_of, segment, spec
from tests.support import POSITIONS, shapes


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", shapes(*POSITIONS))
def test_supported_models_pass_in_every_dtype(shape: str, dtype: str) -> None:
    result = check_model(f"random:{shape}", dtype=dtype, device="cpu")
    assert result.reuse_ok, result.reason
    assert set(result.measured) == {"key_error", "compose_error"}
    assert (
        result.kv_bytes_per_token == 2 * 3 * 2 * 16 * torch.finfo(getattr(torch, dtype)).bits // 8
    )


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("llama-dynamic-tiny", r"change with the prompt's length \(dynamic\)"),
        ("mamba-tiny", "keep a state"),
    ],
)
def test_models_that_cannot_be_right_are_refused_by_name(shape: str, why: str) -> None:
    result = check_model(f"random:{shape}", device="cpu")
    assert not result.reuse_ok
    assert re.search(why, result.reason)


SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def checked(kind: str, **fields: object) -> check.SelfCheck:
    config = AutoConfig.for_model(kind, **{**SMALL, **fields})
    torch.manual_seed(0)
    return check.self_check(AutoModelForCausalLM.from_config(config).eval())


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
    found = checked(kind, **fields)
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
    assert reason is not None
    assert why in reason


@pytest.mark.parametrize(
    ("kind", "fields", "interleaved"),
    [
        ("gemma3_text", {"sliding_window": 16}, False),  # two rotary types, windows
        ("smollm3", {}, False),  # layers without rotary embedding
        ("phi", {}, False),  # partial rotary dimensions
        ("glm", {}, True),  # pairs of neighbouring dimensions
    ],
)
def test_every_form_of_rotary_embedding_is_measured(
    kind: str, fields: dict[str, object], interleaved: bool
) -> None:
    found = checked(kind, **fields)
    assert found.rope, found.reason
    assert found.rope.interleaved is interleaved


def test_a_model_whose_keys_move_wrongly_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Rope.from_model
    monkeypatch.setattr(
        Rope,
        "from_model",
        classmethod(lambda cls, model: Rope(right(model).inv_freq * 1.01, right(model).scaling)),
    )
    result = check_model("random:llama-tiny", device="cpu")
    assert not result.reuse_ok
    assert "do not move with their position" in result.reason


def test_a_model_whose_attention_is_not_understood_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kvcomm.engine.local.attention import Pack

    # Without its window, mistral-tiny's composed prompt is wrong beyond it.
    monkeypatch.setattr("kvcomm.engine.local.attention.first_slot", lambda part, window: 0)
    real = Pack.mask
    monkeypatch.setattr(Pack, "mask", lambda self, i, window, like: real(self, i, None, like))
    result = check_model("random:mistral-tiny", device="cpu")
    assert not result.reuse_ok
    assert "composed prompt differs" in result.reason


@pytest.mark.parametrize("shape", ["llama-dynamic-tiny", "mamba-tiny"])
def test_refused_models_run_dense_with_the_tokens_of_generate(shape: str) -> None:
    engine = load_engine(f"random:{shape}", device="cpu")
    assert isinstance(engine, DenseEngine)
    assert not engine.capabilities.reuse
    assert not engine.capabilities.exact
    ids = list(range(20, 60))

    async def go() -> list[int]:
        seq = engine.open(spec(80))
        await seq.extend([segment(ids)], DENSE, last=answer(16))
        tokens = await answered(seq)  # type: ignore[arg-type]
        assert tokens[-1].last in ("stop", "length")
        return ids_of(tokens)

    with engine:
        tokens = asyncio.run(go())
        tensor = torch.tensor([ids])
        expected = engine.network.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=sorted(engine.stop),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    assert tokens == [i for i in expected if i not in engine.stop]


def test_an_error_in_generate_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine("random:llama-dynamic-tiny", device="cpu")
    monkeypatch.setattr(
        engine.network, "generate", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("broken"))
    )

    async def go() -> None:
        seq = engine.open(spec(80))
        await seq.extend([], DENSE, last=answer(4))
        await answered(seq)  # type: ignore[arg-type]

    with engine, pytest.raises(RuntimeError, match="broken"):
        asyncio.run(go())
