"""The priors of a model: how far each level of `auto` is from dense when base KV is only rotated.

They are measured on a few exchanges in which a second agent reads what a first one read and wrote,
and on questions over passages that earlier prompts have read: fixed texts, so a model has the same
priors everywhere. Those of the embedded model come with
kvcomm. Others are measured once and kept in the cache; until then `auto` is exact.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from kvcomm.background import Once
from kvcomm.engine.base import BACKGROUND, CallSpec, Engine, Replicated, Variant
from kvcomm.engine.models import cache_dir
from kvcomm.kv.files import replace_file
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import LONG
from kvcomm.reuse.policy import Dense
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.exchanges import EXCHANGES, reader, readings, templates

log = logging.getLogger(__name__)

FORMAT = "kvcomm-priors-2"
NAMESPACE = "kvcomm priors"
SHIPPED = files("kvcomm.runtime") / "priors.json"
COMPARED = 12

Priors = dict[str, float]
Ids = Mapping[str, tuple[int, ...]]
_measured: WeakKeyDictionary[Engine, tuple[str, Priors]] = WeakKeyDictionary()
_measuring = Once()
_lock = threading.Lock()


def known(engine: Engine, levels: Sequence[Recipe]) -> Priors | None:
    """The priors of the engine's model, in nats by kind and level: shipped, or measured before.

    None where nobody has measured them yet.
    """
    key = key_of(levels)
    with _lock:
        made, priors = _measured.get(engine, ("", {}))
    if made == key:
        return priors
    found = _stored(SHIPPED, key, engine.weights)
    if found is None:
        found = _stored(_path(engine), key, engine.weights)
    if found is not None:
        _keep(engine, key, found)
    return found


async def measure(engine: Engine, levels: Sequence[Recipe]) -> Priors:
    """The priors of the engine's model; measured now where they are not known.

    That gives way to all calls, and is done once for all who ask.
    """
    while (found := known(engine, levels)) is None:
        async with _measuring.turn(engine) as mine:
            if mine:
                key, found = key_of(levels), await _measured_on(engine, levels)
                _keep(engine, key, found)
                _write(_path(engine), key, engine.weights, found)
    return found


async def _measured_on(engine: Engine, levels: Sequence[Recipe]) -> Priors:
    """`measured`, on one of the replicas where there are any."""
    if not isinstance(engine, Replicated):
        return await measured(engine, levels)
    task = engine.pickled(partial(_on_replica, levels), {})
    found: Priors = await engine.do(await engine.place(), task, _nothing)
    return found


async def _on_replica(levels: Sequence[Recipe], host: Any, emit: Any) -> Priors:
    return await measured(host.engine, levels)


async def _nothing(item: object) -> None:
    """Measuring emits nothing."""


def key_of(levels: Sequence[Recipe]) -> str:
    """Names what priors were measured for: the levels and the texts."""
    texts = EXCHANGES, [*readings()]
    text = repr((FORMAT, [asdict(level) for level in levels], texts, COMPARED))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep(engine: Engine, key: str, priors: Priors) -> None:
    with _lock:
        _measured[engine] = key, priors


def _path(engine: Engine) -> Path:
    return cache_dir() / "priors" / f"{engine.fingerprint}.json"


def _stored(path: Any, key: str, weights: str) -> Priors | None:
    """The priors of a model in a file; a file that is damaged or out of date has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["key"] == key and weights:
            return {str(name): float(prior) for name, prior in value["models"][weights].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _write(path: Path, key: str, weights: str, priors: Priors) -> None:
    """Keep the priors; without a place to write they are measured again next time."""
    text = json.dumps({"key": key, "models": {weights: priors}}, indent=1) + "\n"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))


async def measured(engine: Engine, levels: Sequence[Recipe]) -> Priors:
    """The largest divergence of each level, base KV only rotated: of messages, and of passages.

    Texts are cut to the shortest that levels for long texts realign. A level that has nothing to
    realign in any prompt has no prior.
    """
    log.warning(
        "measuring how well %s can reuse KV, once; until then `auto` is exact", engine.model
    )
    worst: Priors = {}

    async def look(kind: str, template: Template, ids: Ids, how: Sequence[Recipe]) -> None:
        segments = template.fill(ids)
        room = sum(map(len, segments)) + COMPARED
        if room > engine.max_context:
            return
        variants = [Variant(Realign(level, borrows=True)) for level in how]
        spec = spec_of(template, room)
        found = await engine.evaluate(spec, segments, variants, tokens=COMPARED)
        for level, compared in zip(how, found.variants, strict=True):
            if compared.divergence is not None:
                name = f"{kind} {level.name}"
                worst[name] = max(worst.get(name, 0.0), compared.divergence.mean)

    def encoded(texts: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(engine.codec.encode(text))[:LONG] for name, text in texts.items()}

    solver, checker = templates(engine.codec)
    rotated = [replace(level, offsets="", pooled=None) for level in levels]
    for number, (question, answer) in enumerate(EXCHANGES, 1):
        log.info("exchange %d of %d", number, len(EXCHANGES))
        ids = encoded({"question": question, "answer": answer})
        if await read_before(engine, solver, ids, behind="answer"):
            await look("message", checker, ids, rotated)
    rotated = [replace(level, offsets="") for level in levels]
    for name, lenders, asked in readings():
        log.info("passages: %s", name)
        how = [level for level in rotated if (level.short >= LONG - 1) == (name == "long")]
        for passages in lenders:
            ids = encoded(passages)
            await read_before(engine, reader(engine.codec, list(passages), first=True), ids)
        for question, passages in asked:
            ids = encoded({"question": question, **passages})
            await look("borrowed", reader(engine.codec, list(passages)), ids, how)
    return worst


async def read_before(engine: Engine, template: Template, ids: Ids, behind: str = "") -> bool:
    """Have a first agent read texts, and write the one `behind`, for the KV of all.

    False: they do not fit the model's context.
    """
    segments = template.fill(ids)
    if behind:
        segments.append(Segment("placeholder", behind, ids[behind], index=len(segments)))
    if sum(map(len, segments)) > engine.max_context:
        return False
    seq = engine.open(spec_of(template, sum(map(len, segments))))
    try:
        await seq.extend(segments, Dense("priors"))
    finally:
        await seq.close()
    return True


def spec_of(template: Template, capacity: int) -> CallSpec:
    return CallSpec(
        node="priors",
        template=template,
        capacity=capacity,
        shares=True,
        namespace=NAMESPACE,
        priority=BACKGROUND,
    )
