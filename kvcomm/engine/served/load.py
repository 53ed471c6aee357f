"""Loading a served model: its server, its tokenizer, and what both can do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from kvcomm.background import Background
from kvcomm.engine.local.load import check_chat, hub_reachable, stop_ids
from kvcomm.engine.models import RANDOM, locate
from kvcomm.engine.served.abilities import find_out
from kvcomm.engine.served.client import Client, Json
from kvcomm.engine.served.engine import ServedEngine, shut
from kvcomm.engine.shapes import SHAPES
from kvcomm.engine.tokens import TokenizerCodec, byte_tokenizer
from kvcomm.errors import ModelError, ServerError


def build_served(base_url: str, model: str | None, served_model: str | None) -> ServedEngine:
    """See `kvcomm.engine.load.load_served`."""
    logging.set_verbosity_error()
    client = Client(base_url, os.environ.get("OPENAI_API_KEY", ""))
    background = Background("kvcomm-served")
    try:
        try:
            entry = _chosen(background.run(client.models()), served_model, client.base_url)
        except ServerError as error:
            start = model if model and not model.startswith(RANDOM) else "MODEL"
            raise ModelError(
                f"{error}: start it (`vllm serve {start}`), or correct --base-url"
            ) from None
        served = str(entry["id"])
        tokenizer, config, generation = _described(model, entry)
        codec = TokenizerCodec(tokenizer)
        check_chat(codec)
        context = _context(entry, config)
        abilities = background.run(find_out(client, served, codec, context))
        return ServedEngine(
            client,
            background,
            codec,
            abilities,
            model=served,
            fingerprint=_fingerprint(served, tokenizer),
            max_context=context,
            stop=stop_ids(SimpleNamespace(config=config, generation_config=generation), tokenizer),
        )
    except BaseException:
        shut(background, client)
        raise


def _chosen(models: Sequence[Json], wanted: str | None, where: str) -> Json:
    """What the server says of the model that is meant. Raises `ModelError`."""
    names = [str(entry.get("id")) for entry in models]
    if wanted in names:
        return models[names.index(wanted)]
    if wanted is None and len(names) == 1:
        return models[0]
    if wanted is not None:
        lack = f"has no model {wanted!r}: choose one of {', '.join(names)}"
    elif not names:
        lack = "serves no model"
    else:
        lack = (
            f"has {len(names)} models: choose one with --served-model, such as --served-model "
            f"{names[0]} ({', '.join(names[:8])})"
        )
    raise ModelError(f"the server at {where} {lack}")


def _described(model: str | None, entry: Json) -> tuple[Any, Any, Any]:
    """Tokenizer, config and generation config of a model, by the name it was given.

    Without one, what the server loaded is named as the server names it.
    """
    name = model or str(entry.get("root") or entry["id"])
    if name.startswith(RANDOM) and name.removeprefix(RANDOM) in SHAPES:
        fields = SHAPES[name.removeprefix(RANDOM)][1]
        tokenizer = byte_tokenizer()
        return tokenizer, SimpleNamespace(**fields, eos_token_id=tokenizer.eos_token_id), None
    advice = "" if model else "; name the folder or hub id of its tokenizer with --model"
    try:
        source = locate(name)
    except ModelError as error:
        raise ModelError(f"{error}{advice}") from None
    offline = not Path(source).is_dir() and not hub_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
        config = AutoConfig.from_pretrained(source, local_files_only=offline)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if offline:
            first = "it is not in the local cache, and the hub cannot be reached"
        raise ModelError(
            f"the tokenizer of {name!r} cannot be loaded from {source}: {first}{advice}"
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer, so prompts cannot be cut")
    try:
        generation = GenerationConfig.from_pretrained(source, local_files_only=offline)
    except (OSError, ValueError):  # many models have none
        generation = None
    return tokenizer, config, generation


def _context(entry: Json, config: Any) -> int:
    """The server's own limit, else the model's."""
    told = entry.get("max_model_len")
    if isinstance(told, int) and told > 0:
        return told
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", None) or 1 << 20)


def _fingerprint(served: str, tokenizer: Any) -> str:
    """Names the model in records of runs. Its weights are out of sight."""
    sample = tokenizer("A sample: {x} = 12.5, 你好 ∑")["input_ids"]
    text = f"{served} {tokenizer.chat_template} {sample}"
    return "served-" + hashlib.sha256(text.encode()).hexdigest()[:16]
