"""What is known not to work is refused, with a reason."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvcomm.vllm.refusals import ANY_VERSION, TESTED, of_layers, of_request, of_server


class FullAttentionSpec(SimpleNamespace):
    pass


class MambaSpec(SimpleNamespace):
    pass


def spec(**changes: Any) -> Any:
    return FullAttentionSpec(**{"head_size": 64, "sliding_window": None, **changes})


def server(groups: Any = None, **changes: Any) -> tuple[Any, Any]:
    """A configuration as vLLM's, with attributes changed by their paths (`a__b`)."""
    config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(
            kv_connector_extra_config={}, kv_role="kv_both", kv_load_failure_policy="fail"
        ),
        model_config=SimpleNamespace(
            runner_type="generate", is_encoder_decoder=False, use_mla=False, uses_mrope=False
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            data_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True, cache_dtype="auto"),
        speculative_config=None,
    )
    for path, value in changes.items():
        *parts, last = path.split("__")
        place = config
        for part in parts:
            place = getattr(place, part)
        setattr(place, last, value)
    specs = [spec()] if groups is None else groups
    cache = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=one) for one in specs])
    return config, cache


def test_a_server_that_is_known_is_supplied() -> None:
    assert of_server(*server(), TESTED[0]) == ""
    assert of_server(*server(), TESTED[0] + "+cpu") == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_transfer_config__kv_load_failure_policy": "recompute"}, "recompute"),
        ({"kv_transfer_config__kv_role": "kv_producer"}, "kv_both"),
        ({"kv_transfer_config__kv_connector_extra_config": {"stor": 1}}, "'stor'"),
        ({"cache_config__enable_prefix_caching": False}, "prefix caching"),
        ({"cache_config__cache_dtype": "fp8"}, "fp8"),
        ({"parallel_config__pipeline_parallel_size": 2}, "2 pipeline"),
        ({"parallel_config__data_parallel_size": 2}, "2 data parallel"),
        ({"parallel_config__decode_context_parallel_size": 2}, "2 context"),
        ({"speculative_config": object()}, "speculatively"),
        ({"model_config__runner_type": "pooling"}, "pooling"),
        ({"model_config__is_encoder_decoder": True}, "encoder"),
        ({"model_config__use_mla": True}, "MLA"),
        ({"model_config__uses_mrope": True}, "M-RoPE"),
        ({"groups": []}, "empty"),
        ({"groups": [spec(), spec()]}, "FullAttentionSpec, FullAttentionSpec"),
        ({"groups": [MambaSpec()]}, "MambaSpec"),
        ({"groups": [spec(sliding_window=128)]}, "sliding_window"),
        ({"groups": [spec(attention_chunk_size=128)]}, "attention_chunk_size"),
        ({"groups": [spec(head_size_v=32)]}, "differ in size"),
        ({"groups": [spec(non_causal=True)]}, "looks ahead"),
    ],
)
def test_a_server_that_is_not_is_let_alone(changes: dict[str, Any], why: str) -> None:
    assert why in of_server(*server(**changes), TESTED[0])


def test_another_version_is_used_only_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ANY_VERSION, raising=False)
    assert ANY_VERSION in of_server(*server(), "0.99.0")
    monkeypatch.setenv(ANY_VERSION, "1")
    assert of_server(*server(), "0.99.0") == ""


def test_layers_that_share_kv_are_refused() -> None:
    assert of_layers([SimpleNamespace(kv_sharing_target_layer_name=None), SimpleNamespace()]) == ""
    assert "share" in of_layers([SimpleNamespace(kv_sharing_target_layer_name="a")])


def request(**changes: Any) -> Any:
    made = {
        "request_id": "cmpl-1-0",
        "sampling_params": SimpleNamespace(prompt_logprobs=None),
        "lora_request": None,
        "mm_features": [],
        "prompt_embeds": None,
        "prompt_token_ids": [1],
        "resumable": False,
    }
    return SimpleNamespace(**{**made, **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"request_id": "1_cmpl-1-0"}, "several samples"),
        ({"sampling_params": None}, "sample"),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=0)}, "prompt_logprobs"),
        ({"lora_request": object()}, "LoRA"),
        ({"mm_features": [object()]}, "images"),
        ({"prompt_embeds": object()}, "token ids"),
        ({"prompt_token_ids": None}, "token ids"),
        ({"resumable": True}, "in parts"),
    ],
)
def test_requests_that_cannot_be_supplied_are_told_why(changes: dict[str, Any], why: str) -> None:
    found = of_request(request(**changes))
    assert (why in found) if why else not found
