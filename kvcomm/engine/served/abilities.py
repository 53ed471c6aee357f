"""What a server can do beyond the standard, found out once, with a few small requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvcomm.engine.served.client import Client, Json
from kvcomm.engine.served.refusal import Unwanted
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import ModelError

SAMPLE = "A sample: {x} = 12.5, 你好 ∑. "
# Longer than a block of any server's prefix cache.
PROBE = 300
# With what option servers do.
TOLD = "vLLM: --enable-prompt-tokens-details, SGLang: --enable-cache-report"


@dataclass(frozen=True)
class Abilities:
    """`token_ids`: answers come as ids. `salt`: prefixes can be kept apart. `counts`: the server
    says how much of a prompt its prefix cache held.
    """

    token_ids: bool
    salt: bool
    counts: bool

    def fields(self, salt: str) -> dict[str, Any]:
        """The fields of a request that need them."""
        ids = {"return_token_ids": True} if self.token_ids else {}
        return ids | ({"cache_salt": salt} if self.salt else {})

    @property
    def lacks(self) -> str:
        """What it cannot do and what follows from that; empty when it can do everything."""
        lacks = {
            "it gives no token ids, so answers are encoded again": not self.token_ids,
            "it refuses cache_salt, so modes and namespaces share its prefix cache": not self.salt,
            f"it does not say what its prefix cache held ({TOLD})": not self.counts,
        }
        return "; ".join(said for said, lacking in lacks.items() if lacking)


def cached(piece: Json) -> int | None:
    """The tokens of the prompt that the prefix cache held; None where nothing is said."""
    usage = piece.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    found = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return found if isinstance(found, int) else None


async def find_out(
    client: Client, model: str, codec: TokenizerCodec, max_context: int
) -> Abilities:
    """Ask the server. Raises `ModelError` when its tokenizer is another one than `codec`."""
    salt = secrets.token_hex(8)

    async def ask(prompt: object, able: Abilities) -> Json:
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0}
        return await client.complete(body | able.fields(salt))

    for token_ids, with_salt in ((True, True), (True, False), (False, True), (False, False)):
        able = Abilities(token_ids, with_salt, counts=False)
        try:
            first = _choice(await ask(SAMPLE, able))
        except Unwanted:
            if not token_ids and not with_salt:
                raise
        else:
            break
    _check_tokenizer(first.get("prompt_token_ids"), codec, model)
    token_ids = isinstance(first.get("token_ids"), list)  # it may overlook the field
    ids = (codec.encode(SAMPLE) * PROBE)[: min(PROBE, max_context - 1)]
    await ask(ids, able)
    return Abilities(token_ids, able.salt, counts=bool(cached(await ask(ids, able))))


def _choice(answer: Json) -> Json:
    choices = answer.get("choices")
    return choices[0] if isinstance(choices, list) and choices else {}


def _check_tokenizer(theirs: object, codec: TokenizerCodec, model: str) -> None:
    ours = codec.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if isinstance(theirs, list) and theirs[-len(ours) :] != ours:
        raise ModelError(
            f"the served model {model!r} has another tokenizer: name its folder or hub id "
            "with --model"
        )
