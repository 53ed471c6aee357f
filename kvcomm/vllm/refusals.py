"""Servers and requests for which nothing can be supplied, and why.

Duck-typed: it reads vLLM's configuration and requests without importing vLLM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

TESTED = ("0.31.0", "0.32.0")
ANY_VERSION = "KVCOMM_VLLM_UNTESTED"
# The entries of `kv_connector_extra_config`.
OPTIONS = ("state", "store_gb", "device_share", "models_gb", "row_s")
SPEC = "FullAttentionSpec"
DTYPES = ("auto", "float32", "float16", "bfloat16")
# How vLLM calls the samples of one request, where it wants several.
CHILD = re.compile(r"\d+_")


def of_server(config: Any, cache: Any, version: str) -> str:
    """Why a server is not supplied, or nothing.

    `config` is its `VllmConfig`, `cache` its `KVCacheConfig`, and `version` that of vLLM.
    """
    return "; ".join((*_of_version(version), *_of_config(config), *_of_cache(cache)))


def _of_version(version: str) -> Iterator[str]:
    if version.split("+")[0] not in TESTED and os.environ.get(ANY_VERSION) != "1":
        yield (
            f"vLLM {version} was not tested (these were: {', '.join(TESTED)}): "
            f"set {ANY_VERSION}=1 to use it all the same"
        )


def _of_config(config: Any) -> Iterator[str]:
    transfer, model, parallel = (
        config.kv_transfer_config,
        config.model_config,
        config.parallel_config,
    )
    unknown = set(transfer.kv_connector_extra_config) - set(OPTIONS)
    if unknown:
        yield f"kv_connector_extra_config has no {min(unknown)!r}: there are {', '.join(OPTIONS)}"
    if transfer.kv_role != "kv_both":
        yield f'kv_role is {transfer.kv_role!r}: it must be "kv_both"'
    if transfer.kv_load_failure_policy != "fail":
        yield f'kv_load_failure_policy is {transfer.kv_load_failure_policy!r}: it must be "fail"'
    if not config.cache_config.enable_prefix_caching:
        yield "prefix caching is off: start with --enable-prefix-caching"
    if str(config.cache_config.cache_dtype) not in DTYPES:
        yield f"its cache is kept as {config.cache_config.cache_dtype}"
    for what, count in (
        ("pipeline stages", parallel.pipeline_parallel_size),
        ("data parallel ranks", parallel.data_parallel_size),
        ("context parallel ranks", getattr(parallel, "prefill_context_parallel_size", 1)),
        ("context parallel ranks", getattr(parallel, "decode_context_parallel_size", 1)),
    ):
        if count != 1:
            yield f"it has {count} {what}"
    if config.speculative_config is not None:
        yield "it decodes speculatively"
    if model.runner_type != "generate":
        yield f"it does not generate but {model.runner_type}s"
    if model.is_encoder_decoder:
        yield "its model has an encoder"
    if model.use_mla:
        yield "its model has latent attention (MLA)"
    if model.uses_mrope:
        yield "its model rotates in several dimensions (M-RoPE)"


def _of_cache(cache: Any) -> Iterator[str]:
    groups = cache.kv_cache_groups
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if kinds != [SPEC]:
        yield f"its KV cache is {', '.join(kinds) or 'empty'} instead of one {SPEC}"
        return
    spec = groups[0].kv_cache_spec
    for what in ("sliding_window", "attention_chunk_size"):
        if getattr(spec, what, None):
            yield f"its model attends with a {what}"
    if getattr(spec, "head_size_v", spec.head_size) != spec.head_size:
        yield "its keys and values differ in size"
    if getattr(spec, "non_causal", False):
        yield "its model looks ahead"


def of_layers(layers: Iterable[Any]) -> str:
    """Why the KV of a model's attention layers cannot be supplied, or nothing."""
    if any(getattr(layer, "kv_sharing_target_layer_name", None) for layer in layers):
        return "layers of its model share their KV"
    return ""


def of_request(request: Any) -> str:
    """Why a vLLM request is not supplied, or nothing."""
    sampling = request.sampling_params
    if sampling is None:
        return "it does not sample"
    if CHILD.match(request.request_id):
        return "it is one of several samples (n)"
    if request.lora_request is not None:
        return "it has a LoRA adapter"
    if request.mm_features:
        return "it has images or other media"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "its prompt is not token ids alone"
    if sampling.prompt_logprobs is not None:
        return "it wants prompt_logprobs"
    if getattr(request, "resumable", False):
        return "its prompt comes in parts"
    return ""
