"""Loading an engine: a model in this process, behind a server, or on replicas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcomm.engine.models import Check
from kvcomm.errors import UsageError
from kvcomm.extras import need

if TYPE_CHECKING:
    from kvcomm.engine.kv_cache import KVCache


def load_engine(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    kv_cache: KVCache | Path | str | None = None,
    replicas: int | None = None,
) -> Any:
    """The engine for a model: an alias, a local folder, a hub id, or `random:SHAPE`.

    `device` defaults to cuda, then mps, then cpu; `dtype` to bfloat16 on cuda, float16 on mps and
    float32 on cpu. `memory` bounds the bytes of all KV on the device (default: half of what is free
    once the model is loaded). `kv_cache` is a folder where the KV of texts is kept for later
    processes, or "default": that of the model in the user's cache, up to 4 GiB. The self-check runs
    here: a model whose KV cannot be reused gets an engine that runs dense and whose `capabilities`
    say why. With `replicas` it is `load_ray`'s. Raises `ModelError` (exit code 2), and `UsageError`
    for the folder of another model.
    """
    if replicas is not None:
        if kv_cache is not None:
            raise UsageError("replicas have no `kv_cache`: leave it out")
        return load_ray(name, replicas, device=device, dtype=dtype, memory=memory)
    from kvcomm.engine.kv_cache import KVCache
    from kvcomm.engine.local.load import build_engine

    return build_engine(name, device, dtype, memory, KVCache.of(kv_cache))[0]


def load_served(
    base_url: str | Sequence[str], model: str | None = None, *, served_model: str | None = None
) -> Any:
    """The engine for a model behind an OpenAI-compatible server (vLLM, SGLang), or behind several.

    Of several servers each runs whole graphs; what one has read and learned stays there.
    `model` names the tokenizer: an alias, a folder or a hub id; by default what the server calls
    its model. `served_model` is needed only where the server has several. A key is read from
    `OPENAI_API_KEY`. What the server can do is found out here, with a few requests; `capabilities`
    say it. Raises `ModelError` (exit code 2).
    """
    need("httpx", "serve")
    from kvcomm.engine.served.load import build_pool, build_served

    urls = [base_url] if isinstance(base_url, str) else [*base_url]
    if len(urls) > 1:
        return build_pool(urls, model, served_model)
    return build_served(urls[0], model, served_model)


def load_ray(
    name: str,
    replicas: int | None = None,
    *,
    address: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    memory: int | None = None,
) -> Any:
    """The engine for `replicas` of a model as actors of Ray, a GPU or a share of the CPUs each.

    Ray is started here, or joined at `address` (or `RAY_ADDRESS`; "auto" finds one on this
    machine). By default there is one replica a GPU, or one a machine without them. `name` must
    mean the same model on all machines. The other options are those of `load_engine`. Raises
    `ModelError` (exit code 2).
    """
    need("ray", "ray")
    from kvcomm.engine.ray import build_replicas

    load = partial(load_engine, name, device=device, dtype=dtype, memory=memory)
    return build_replicas(load, replicas, address, device, memory)


def check_model(name: str, *, device: str | None = None, dtype: str | None = None) -> Check:
    """Load a model and report the verdict of its self-check."""
    from kvcomm.engine.local.load import check

    return check(name, device, dtype)
