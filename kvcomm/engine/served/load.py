"""Loading a served model: its server, its tokenizer, and what both can do."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from kvcomm.background import Background
from kvcomm.engine.local.load import check_chat, context_of, pretrained, stop_ids
from kvcomm.engine.models import RANDOM
from kvcomm.engine.served.client import Client, Json, Unwanted
from kvcomm.engine.served.engine import ServedEngine, shut
from kvcomm.engine.served.kv_engine import ServedKVEngine
from kvcomm.engine.served.pool import ServerPool
from kvcomm.engine.served.protocol import Abilities, cached
from kvcomm.engine.shapes import SHAPES
from kvcomm.engine.tokens import TokenizerCodec, byte_tokenizer
from kvcomm.errors import ModelError, ServerError
from kvcomm.vllm.protocol import Reply, Request

SAMPLE = "A sample: {x} = 12.5, 你好 ∑. "
# Longer than a block of any server's prefix cache.
PROBE = 300


def build_served(base_url: str, model: str | None, served_model: str | None) -> ServedEngine:
    """See `kvcomm.engine.load.load_served`."""
    logging.set_verbosity_error()
    client = Client(base_url, os.environ.get("OPENAI_API_KEY", ""))
    background = Background("kvcomm-served")
    try:
        try:
            entry = _chosen(background.run(client.ask("models")), served_model, client.base_url)
        except ServerError as error:
            start = model if model and not model.startswith(RANDOM) else "MODEL"
            raise ModelError(
                f"{error}: start it (`vllm serve {start}`), or correct --base-url"
            ) from None
        served = str(entry["id"])
        tokenizer, config, generation = _described(model, entry)
        codec = TokenizerCodec(tokenizer)
        check_chat(codec)
        told = entry.get("max_model_len")
        context = told if isinstance(told, int) and told > 0 else context_of(config)
        abilities = background.run(find_out(client, served, codec, context))
        kept = background.run(find_connector(client, served, codec, abilities))
        if kept is not None and not kept.refused:
            make: Callable[..., ServedEngine] = partial(ServedKVEngine, about=kept.about or {})
        else:
            make = ServedEngine
        if kept is not None and kept.refused:
            refused = f"its connector of kvcomm realigns nothing: {kept.refused}"
            abilities = replace(abilities, refused=refused)
        engine = make(
            client,
            background,
            codec,
            abilities,
            model=served,
            fingerprint=_fingerprint(served, tokenizer),
            max_context=context,
            stop=stop_ids(SimpleNamespace(config=config, generation_config=generation), tokenizer),
        )
        if isinstance(engine, ServedKVEngine):
            engine.supply.heard(kept)  # what it learned from others, or before it was restarted
        return engine
    except BaseException:
        shut(background, client)
        raise


def build_pool(urls: Sequence[str], model: str | None, served_model: str | None) -> ServerPool:
    """See `kvcomm.engine.load.load_served`."""
    engines: list[ServedEngine] = []
    try:
        for url in dict.fromkeys(urls):
            engines.append(build_served(url, model, served_model))
        return ServerPool(engines)
    except BaseException:
        for engine in engines:
            engine.close()
        raise


def _chosen(told: Json, wanted: str | None, where: str) -> Json:
    """What the server says of the model that is meant. Raises `ModelError`."""
    models = [entry for entry in told.get("data") or () if isinstance(entry, dict)]
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


def _described(model: str | None, entry: Json) -> Sequence[Any]:
    """Tokenizer, config and generation config of a model, by the name it was given.

    Without one, what the server loaded is named as the server names it.
    """
    name = model or str(entry.get("root") or entry["id"])
    if name.startswith(RANDOM) and name.removeprefix(RANDOM) in SHAPES:
        fields = SHAPES[name.removeprefix(RANDOM)][1]
        tokenizer = byte_tokenizer()
        return tokenizer, SimpleNamespace(**fields, eos_token_id=tokenizer.eos_token_id), None
    try:
        return pretrained(
            name,
            AutoTokenizer.from_pretrained,
            AutoConfig.from_pretrained,
            _generation,
            what=f"the tokenizer of {name!r}",
        )
    except ModelError as error:
        advice = "" if model else "; name the folder or hub id of its tokenizer with --model"
        raise ModelError(f"{error}{advice}") from None


def _generation(source: str, **options: Any) -> Any:
    try:
        return GenerationConfig.from_pretrained(source, **options)
    except (OSError, ValueError):  # many models have none
        return None


async def find_out(
    client: Client, model: str, codec: TokenizerCodec, max_context: int
) -> Abilities:
    """Ask the server, with a few small requests.

    Raises `ModelError` when its tokenizer is another one than `codec`.
    """
    salt = secrets.token_hex(8)

    async def ask(prompt: object, able: Abilities) -> Json:
        body = able.body(model, prompt, salt, max_tokens=1, temperature=0.0)
        return await client.ask("completions", body)

    for token_ids, with_salt in product((True, False), repeat=2):
        able = Abilities(token_ids, with_salt, counts=False)
        try:
            choices = (await ask(SAMPLE, able)).get("choices")
            break
        except Unwanted:
            if not token_ids and not with_salt:
                raise
    first = choices[0] if isinstance(choices, list) and choices else {}
    theirs = first.get("prompt_token_ids")
    ours = codec.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if isinstance(theirs, list) and theirs[-len(ours) :] != ours:
        raise ModelError(
            f"the served model {model!r} has another tokenizer: name its folder or hub id "
            "with --model"
        )
    token_ids = isinstance(first.get("token_ids"), list)  # it may overlook the field
    ids = (codec.encode(SAMPLE) * PROBE)[: min(PROBE, max_context - 1)]
    await ask(ids, able)
    return Abilities(token_ids, able.salt, counts=bool(cached(await ask(ids, able))))


async def find_connector(
    client: Client, model: str, codec: TokenizerCodec, able: Abilities
) -> Reply | None:
    """What kvcomm's connector on the server says of itself; None where there is none.

    It needs salts: nobody is asked who takes none.
    """
    if not able.salt:
        return None
    asked = {"kv_transfer_params": Request(query=True).to_json()}
    ids, salt = codec.encode(SAMPLE), secrets.token_hex(8)
    body = able.body(model, ids, salt, max_tokens=1, temperature=0.0, **asked)
    try:
        answer = await client.ask("completions", body)
    except Unwanted:  # it takes no such field
        return None
    params = answer.get("kv_transfer_params")
    return Reply.from_json(params if isinstance(params, dict) else None)


def _fingerprint(served: str, tokenizer: Any) -> str:
    """Names the model in records of runs. Its weights are out of sight."""
    sample = tokenizer("A sample: {x} = 12.5, 你好 ∑")["input_ids"]
    text = f"{served} {tokenizer.chat_template} {sample}"
    return "served-" + hashlib.sha256(text.encode()).hexdigest()[:16]
