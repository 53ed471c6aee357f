"""Loading: weights on the right device, the self-check, and the engine that fits its verdict."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvcomm.engine.base import Engine
from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.kv_cache import KVCache
from kvcomm.engine.local.check import SelfCheck, kv_shape, self_check, slot_bytes
from kvcomm.engine.local.engine import LocalEngine
from kvcomm.engine.local.memory import release_unused
from kvcomm.engine.local.onednn import use_onednn
from kvcomm.engine.models import RANDOM, Check, fingerprint, locate
from kvcomm.engine.shapes import SHAPES, random_model
from kvcomm.engine.tokens import MOST, TokenizerCodec
from kvcomm.errors import ModelError, UsageError
from kvcomm.kv.precision import place_for
from kvcomm.prompt import Hole, compile_template
from kvcomm.reuse.offsets.linear import state_bytes

DTYPES = ("float32", "bfloat16", "float16", "float64")


def check(name: str, device: str | None, dtype: str | None) -> Check:
    """See `kvcomm.engine.load.check_model`."""
    engine, verdict = build_engine(name, device, dtype)
    engine.close()
    config = engine.config  # type: ignore[attr-defined]
    try:
        layers, heads, _, dim = kv_shape(config, 0)
        per_token = slot_bytes(config, getattr(torch, engine.dtype))
        offsets = state_bytes(layers, heads, dim)
    except AttributeError:  # a model without attention heads
        layers, per_token, offsets = config.get_text_config().num_hidden_layers, 0, 0
    errors = {"key_error": verdict.key_error, "compose_error": verdict.compose_error}
    measured = {name: error for name, error in errors.items() if error is not None}
    way = "flash kernel" if verdict.flash else "scaled dot product" if verdict.ok else "its own"
    sizes = (engine.max_context, layers, per_token, offsets)
    return Check(engine.model, verdict.ok, verdict.reason, measured, *sizes, way)


def build_engine(
    name: str,
    device: str | None,
    dtype: str | None,
    memory: int | None = None,
    kv_cache: KVCache | None = None,
) -> tuple[Engine, SelfCheck]:
    """See `kvcomm.engine.load.load_engine`."""
    if memory is not None and memory <= 0:
        raise UsageError(f"a budget of {memory} bytes holds nothing: use --memory 4GB, say")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    place = _device(device)
    kind = _dtype(dtype, place)
    if name.startswith(RANDOM):
        shape = name.removeprefix(RANDOM)
        if shape not in SHAPES:
            raise ModelError(
                f"random shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}"
            )
        model, tokenizer = random_model(shape, place, kind)
    else:
        tokenizer, model = pretrained(
            name,
            AutoTokenizer.from_pretrained,
            lambda source, **options: (
                AutoModelForCausalLM.from_pretrained(source, dtype=kind, **options).to(place).eval()
            ),
        )
    codec = TokenizerCodec(tokenizer)
    check_chat(codec)
    if place.type == "cpu" and kind == torch.float32:
        use_onednn(model)
    verdict = self_check(model)
    named: dict[str, Any] = {
        "name": name,
        "fingerprint": fingerprint(model, tokenizer),
        "max_context": context_of(model.config),
        "stop": stop_ids(model, tokenizer),
    }
    engine: Engine
    if verdict.rope is None:
        engine = DenseEngine(model, codec, **named, reason=verdict.reason)
    else:
        disk = kv_cache.open(name, named["fingerprint"], place) if kv_cache else None
        engine = LocalEngine(
            model, codec, verdict.rope, **named, memory=memory, kv_cache=disk, flash=verdict.flash
        )
    release_unused(place)
    return engine, verdict


def context_of(config: Any) -> int:
    """The most tokens that a model's positions are made for."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", None) or MOST)


def pretrained(name: str, *make: Callable[..., Any], what: str = "") -> list[Any]:
    """What the functions `make` read of a model, the tokenizer first. Raises `ModelError`.

    They are given the folder or hub id that `name` stands for; `what` says what they read.
    """
    source = locate(name)
    # Without this, an unreachable hub is tried for the better part of a minute.
    offline = not Path(source).is_dir() and not hub_reachable()
    try:
        found = [maker(source, local_files_only=offline) for maker in make]
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if offline:
            first = "it is not in the local cache, and the hub cannot be reached"
        what = what or f"model {name!r}"
        raise ModelError(f"{what} cannot be loaded from {source}: {first}") from None
    if not found[0].is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer, so prompts cannot be cut")
    return found


def check_chat(codec: TokenizerCodec) -> None:
    """Raise `TemplateError` for a chat template that no prompt can be made with."""
    compile_template(codec, (), (Hole("text"),))


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer, from the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        if value is not None:
            found |= set(value) if isinstance(value, list | tuple) else {int(value)}
    return frozenset(found)


def hub_reachable() -> bool:
    """Whether the hub answers, or a proxy might reach it."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # a direct connection would prove nothing
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=3).close()
    except OSError:
        return False
    return True


def _device(name: str | None) -> torch.device:
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"device {name!r} is not available here: use cpu, cuda or mps") from None
    return device


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return {"cuda": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is unknown: choose one of {', '.join(DTYPES)}")
    kind: torch.dtype = getattr(torch, name)
    if place_for(kind, device) != device:
        raise ModelError(f"{device.type} has no {name}: use float32 or float16, or --device cpu")
    return kind
