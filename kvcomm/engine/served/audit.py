"""Audits on a server: prompts are compared by the log-probabilities of what dense would say.

Of every token of dense's greedy answer the server names the most likely ones, and says how likely
the same ones are behind the realigned prompt. What is not named is one rest. Binning can only make
a divergence smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvcomm.engine.base import (
    BACKGROUND,
    COMPARED,
    CallSpec,
    Compared,
    Divergence,
    ShadowEvaluation,
    Variant,
)
from kvcomm.engine.served.client import Json
from kvcomm.engine.served.publishing import lessons_of
from kvcomm.engine.served.realigned import RealignedSequence
from kvcomm.errors import ServerError
from kvcomm.prompt import Segment
from kvcomm.vllm.protocol import FORCE, Reply, Request, salt_of

# So many tokens are named of every distribution, where the server may (vLLM: --max-logprobs).
NAMED = 128
# Log-probabilities by token, of every token of an answer.
Named = Sequence[Mapping[int, float]]
LEAST = 1e-9


async def evaluated(
    engine: Any,
    call: CallSpec,
    segments: Sequence[Segment],
    variants: Sequence[Variant],
    learn: Sequence[str],
    distinct: bool,
    tokens: int,
) -> ShadowEvaluation:
    """See `kvcomm.engine.base.Engine.evaluate`.

    Raises `ServerError` where a prompt was not filled as it was planned: it would look too good.
    """
    ids = [i for segment in segments for i in segment.ids]
    call = replace(call, capacity=len(ids) + tokens, answer_tokens=tokens, priority=BACKGROUND)
    planned = []
    for variant in variants:
        options = variant.policy.options
        shadow = replace(
            variant.call or call, reuse=replace(options, publishes=False), shares=False
        )
        seq = RealignedSequence(engine, shadow)
        planned.append((seq, await seq.extend(segments, variant.policy, ends=True)))
    found = [lessons_of(engine.supply, call, segments, family) for family in learn]
    lessons = tuple(lesson for some in found for lesson in some)
    dense = _body(engine, ids, engine.salt(call), Request(lessons=lessons), tokens)
    answer = await _asked(engine, {**dense, "logprobs": _most(engine)})
    engine.supply.heard(Reply.from_json(answer.get("kv_transfer_params")))
    said, named = told(answer)
    spent = len(ids) + len(said)
    compared: list[Compared] = []
    known: dict[object, tuple[Divergence | None, int]] = {}
    for seq, done in planned:
        key = tuple((u.index, u.positions, u.source, u.corrected) for u in done.segments)
        divergence, cost = known.get(key, (None, 0)) if distinct else (None, 0)
        if divergence is None and not done.dense:
            others = await _forced(engine, seq, ids, said[:COMPARED], named)
            divergence = compare(said, named, others)
            cost = sum(usage.computed for usage in done.segments) + len(others)
            known[key] = divergence, 0
        await seq.close()
        compared.append(Compared(done.segments, done.decision, done.dense, divergence, cost))
    return ShadowEvaluation(compared, spent)


def _body(
    engine: Any, ids: Sequence[int], salt: str, request: Request, tokens: int
) -> dict[str, Any]:
    body: dict[str, Any] = engine.body(ids, salt, max_tokens=tokens, temperature=0.0)
    body |= {"return_tokens_as_token_ids": True, **engine.supply.params(request)}
    return body


async def _asked(engine: Any, body: Json) -> Json:
    answer: Json = await engine.asked(lambda: body)
    return answer


def _most(engine: Any) -> int:
    most = int(engine.about.get("max_logprobs") or 20)
    return NAMED if most < 0 else min(most, NAMED)


async def _forced(
    engine: Any,
    seq: RealignedSequence,
    ids: Sequence[int],
    said: Sequence[int],
    named: Named,
) -> Named:
    """How likely a realigned prompt makes what dense named.

    One request where the server can be made to say dense's answer (`kvcomm.vllm.forced`); then it
    names what is most likely there, and what both name is compared. Else a request a token.
    """
    if engine.about.get("forced"):
        request = seq.request(keep=False)
        body = _body(engine, ids, salt_of(request.row), request, len(said))
        more = {"logprobs": _most(engine), "vllm_xargs": {FORCE: list(said)}}
        answer = await _asked(engine, {**body, **more, "ignore_eos": True})
        _check(seq, answer, len(ids))
        return told(answer)[1]
    found: list[Mapping[int, float]] = []
    for step in range(len(said)):
        whole = [*ids, *said[:step]]
        request = seq.request(keep=step + 1 < len(said))
        body = _body(engine, whole, salt_of(request.row), request, 1)
        wanted = sorted(named[step])
        answer = await _asked(engine, {**body, "logprobs": 1, "logprob_token_ids": wanted})
        _check(seq, answer, len(whole))
        found += told(answer)[1][:1]
    return found


def _check(seq: RealignedSequence, answer: Json, length: int) -> None:
    """Raise `ServerError` where a prompt of this length was not filled as it was planned."""
    seq.supplied(Reply.from_json(answer.get("kv_transfer_params")), length)
    if seq.short:
        raise ServerError(f"not measured: {seq.short}")


def told(answer: Json) -> tuple[list[int], Named]:
    """The tokens of an answer, and the log-probabilities that were named at each of them.

    Raises `ServerError` for a server that does not name them by id.
    """
    choice = (answer.get("choices") or [{}])[0]
    logprobs = choice.get("logprobs") or {}
    try:
        ids = [_id(token) for token in logprobs["tokens"]]
        named = [
            {_id(token): float(value) for token, value in step.items()}
            for step in logprobs["top_logprobs"]
        ]
    except (KeyError, TypeError, ValueError):
        raise ServerError("the server does not say log-probabilities by token id") from None
    return ids, named


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def compare(said: Sequence[int], dense: Named, other: Named) -> Divergence:
    """The divergence along dense's answer, by what dense named; the rest is one bin.

    `same_text` and `top1` go by what is named: whether dense's token is the most likely of it.
    """
    steps = [_kl(one, two) for one, two in zip(dense, other, strict=False)]
    agrees = [
        two.get(token, -math.inf) >= max(two.values())
        for token, two in zip(said, other, strict=False)
    ]
    return Divergence(
        mean=sum(steps) / len(steps),
        first=steps[0],
        top1=sum(agrees) / len(agrees),
        same_text=all(agrees),
    )


def _kl(one: Mapping[int, float], two: Mapping[int, float]) -> float:
    """KL(one ‖ two) in nats over the tokens that `one` names, and the rest."""
    both = [token for token in one if token in two]
    kept = sum(math.exp(one[token]) for token in both)
    held = sum(math.exp(two[token]) for token in both)
    total = sum(math.exp(one[token]) * (one[token] - two[token]) for token in both)
    rest, other = max(1.0 - kept, LEAST), max(1.0 - held, LEAST)
    return max(total + rest * math.log(rest / other), 0.0)
