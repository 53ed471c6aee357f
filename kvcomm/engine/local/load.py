"""Loading: weights on the right device, the self-check, and the engine that fits its verdict."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvcomm.engine.base import Engine
from kvcomm.engine.dense import DenseEngine
from kvcomm.engine.local.check import SelfCheck, kv_shape, self_check, slot_bytes
from kvcomm.engine.local.engine import LocalEngine
from kvcomm.engine.local.memory import release_unused
from kvcomm.engine.local.onednn import use_onednn
from kvcomm.engine.models import RANDOM, Check, fingerprint, locate
from kvcomm.engine.shapes import SHAPES, random_model
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import ModelError, UsageError
from kvcomm.kv import Rope
from kvcomm.kv.precision import place_for
from kvcomm.prompt import Hole, compile_template
from kvcomm.reuse.offsets.linear import state_bytes

DTYPES = ("float32", "bfloat16", "float16", "float64")


def build_engine(
    name: str, device: str | None, dtype: str | None, memory: int | None, spill: Path | None
) -> Engine:
    """See `kvcomm.engine.load.load_engine`."""
    if memory is not None and memory <= 0:
        raise UsageError(f"a budget of {memory} bytes holds nothing: use --memory 4GB, say")
    engine, _ = _load(name, device, dtype, memory, spill)
    return engine


def check(name: str, device: str | None, dtype: str | None) -> Check:
    """See `kvcomm.engine.load.check_model`."""
    engine, verdict = _load(name, device, dtype)
    try:
        measured = {"key_error": verdict.key_error, "compose_error": verdict.compose_error}
        config = engine.config  # type: ignore[attr-defined]
        try:
            layers, heads, _, dim = kv_shape(config, 0)
            per_token = slot_bytes(config, getattr(torch, engine.dtype))
            offsets = state_bytes(layers, heads, dim)
        except AttributeError:  # a model without attention heads
            layers, per_token, offsets = config.get_text_config().num_hidden_layers, 0, 0
        return Check(
            engine.model,
            verdict.ok,
            verdict.reason,
            {key: value for key, value in measured.items() if value is not None},
            engine.max_context,
            layers,
            per_token,
            offsets,
            "flash kernel" if verdict.flash else "scaled dot product" if verdict.ok else "its own",
        )
    finally:
        engine.close()


def _load(
    name: str,
    device: str | None,
    dtype: str | None,
    memory: int | None = None,
    spill: Path | None = None,
) -> tuple[Engine, SelfCheck]:
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
        source = locate(name)
        # Without this, an unreachable hub is tried for the better part of a minute.
        offline = not Path(source).is_dir() and not hub_reachable()
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=kind, local_files_only=offline
            )
            model.to(place).eval()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            if offline:
                first = "it is not in the local cache, and the hub cannot be reached"
            raise ModelError(f"model {name!r} cannot be loaded from {source}: {first}") from None
    if not tokenizer.is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer, so prompts cannot be cut")
    check_chat(TokenizerCodec(tokenizer))
    if place.type == "cpu" and kind == torch.float32:
        use_onednn(model)
    verdict, rope = self_check(model)
    engine = _engine(name, model, tokenizer, verdict, rope, memory, spill)
    release_unused(place)
    return engine, verdict


def _engine(
    name: str,
    model: object,
    tokenizer: object,
    verdict: SelfCheck,
    rope: Rope | None,
    memory: int | None,
    spill: Path | None,
) -> Engine:
    config = model.config  # type: ignore[attr-defined]
    text = config.get_text_config()
    codec = TokenizerCodec(tokenizer)
    context = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
    stop = stop_ids(model, tokenizer)
    print_ = fingerprint(model, tokenizer)
    if rope is None:
        return DenseEngine(
            model,
            codec,
            name=name,
            fingerprint=print_,
            max_context=context,
            stop=stop,
            reason=verdict.reason,
        )
    return LocalEngine(
        model,
        codec,
        rope,
        name=name,
        fingerprint=print_,
        max_context=context,
        stop=stop,
        memory=memory,
        spill=spill,
        flash=verdict.flash,
    )


def check_chat(codec: TokenizerCodec) -> None:
    """Raise `TemplateError` for a chat template that no prompt can be made with."""
    compile_template(codec, (), (Hole("text"),))


def stop_ids(model: object, tokenizer: object) -> frozenset[int]:
    """Ids that end an answer, from the generation config, the config and the tokenizer."""
    found: set[int] = set()
    for source in (
        getattr(model, "generation_config", None),
        model.config,  # type: ignore[attr-defined]
        tokenizer,
    ):
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
