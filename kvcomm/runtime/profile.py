"""What `auto` must know of a model on a device before it has seen a call: measured once, cached.

Priors: how far each level is from dense when base KV is only rotated, on a few exchanges in which a
second agent reads what a first one read and wrote.
Time: how many tokens a forward carries beside a decoding row at no cost, and how many for the time
of a second row.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from kvcomm.engine.base import AHEAD, Answer, Call, Engine, EngineSequence
from kvcomm.engine.models import cache_dir
from kvcomm.kv.files import replace_file
from kvcomm.message import Handle
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import LONG, Auto
from kvcomm.reuse.plan import Step
from kvcomm.reuse.recipe import Budget, Recipe
from kvcomm.runtime.beside import beside
from kvcomm.runtime.exchanges import EXCHANGES, templates
from kvcomm.sampling import Sampling

log = logging.getLogger(__name__)

FORMAT = "kvcomm-profile-3"
NAMESPACE = "kvcomm profile"
# A forward is as fast as that of one token when it takes at most this many times as long.
AS_FAST = 1.1
TWICE = 2.0
CHUNKS = (1, 4, 8, 16, 32, 64)
CONTEXT = 256
COMPARED = 12
# Who reads the KV of an exchange reads it at once.
USE = 0
COMPUTE = Step("compute", "profile")


@dataclass(frozen=True)
class Profile:
    """`spare` tokens a step are free, `breakeven` ones double its time; `priors` are in nats."""

    spare: int
    breakeven: int
    priors: dict[str, float]


async def profile(engine: Engine, levels: Sequence[Recipe]) -> Profile:
    """The profile of this model on this device, from the cache or measured now."""
    path = cache_dir() / "profiles" / f"{engine.fingerprint}-{engine.device.replace(':', '')}.json"
    key = {"format": FORMAT, "levels": [asdict(level) for level in levels]}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("key") == key:
            return Profile(**known)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    log.info("measuring how well %s can reuse KV on this device, once", engine.model)
    measured = Profile(*await _times(engine), await _priors(engine, levels))
    _write(path, json.dumps({"key": key, **asdict(measured)}, indent=1))
    return measured


async def inform(auto: Auto, engine: Engine, *, budget: bool = True) -> None:
    """Give a controller what it must know of the engine; with `budget` its repair budget too."""
    if auto.priors or auto.target == 0:
        return
    measured = await profile(engine, auto.levels)
    auto.priors, auto.spare = measured.priors, measured.spare
    if budget:
        auto.budget = Budget(tokens=measured.breakeven)


async def _times(engine: Engine) -> tuple[int, int]:
    """Tokens of a forward that takes as long as one of a single token, and twice as long."""
    text = " ".join(part for exchange in EXCHANGES for part in exchange)
    ids = (tuple(engine.codec.encode(text)) * (1 + CONTEXT // 64))[: CONTEXT + max(CHUNKS)]
    template = Template(((), ()), ("text",), "profile")
    seq = engine.open(_call(template, len(ids) + 1))
    best = dict.fromkeys(CHUNKS, float("inf"))
    try:
        await _compute(seq, ids[:CONTEXT])
        for _ in range(2):
            for chunk in CHUNKS:
                began = time.perf_counter()
                await _compute(seq, ids[CONTEXT : CONTEXT + chunk])
                best[chunk] = min(best[chunk], time.perf_counter() - began)
                await seq.truncate(CONTEXT)
    finally:
        await seq.close()
    spare = max(c for c in CHUNKS if best[c] <= AS_FAST * best[1]) - 1
    return spare, max(c for c in CHUNKS if best[c] <= TWICE * best[1])


async def _compute(seq: EngineSequence, ids: Sequence[int]) -> None:
    await seq.extend([Segment("placeholder", "text", tuple(ids))], [COMPUTE], settle=False)


async def _priors(engine: Engine, levels: Sequence[Recipe]) -> dict[str, float]:
    """The largest divergence of each level over the exchanges, base KV only rotated.

    Texts are cut to the shortest that levels for long texts realign. A level that has nothing to
    realign in any exchange has no prior.
    """
    solver, checker = templates(engine.codec)
    worst: dict[str, float] = {}
    for question, answer in EXCHANGES:
        texts = {"question": question, "answer": answer}
        ids = {name: tuple(engine.codec.encode(text))[:LONG] for name, text in texts.items()}
        room = sum(map(len, ids.values())) + checker.literal_tokens() + COMPARED
        if room > engine.max_context:
            continue
        handles = await _handles(engine, solver, ids)
        segments = checker.fill(ids, handles)
        call = replace(_call(checker, room), messages=frozenset({"answer"}), borrows=True)
        dense = engine.open(call)
        try:
            greedy = Answer(Sampling(max_tokens=COMPARED), record=True)
            await dense.extend(segments, [COMPUTE] * len(segments), answer=greedy)
            async for _ in dense.decode():
                pass
            rotated = [replace(level, offsets="") for level in levels]
            async for level, found, _ in beside(
                partial(engine.open, call), segments, rotated, dense
            ):
                worst[level.name] = max(worst.get(level.name, 0.0), found.mean)
        finally:
            await dense.close()
            for handle in handles.values():
                await engine.release(handle, USE)
    return worst


async def _handles(
    engine: Engine, template: Template, ids: Mapping[str, tuple[int, ...]]
) -> dict[str, Handle]:
    """The KV of texts, as a first agent reads the question and writes the answer."""
    segments = [*template.fill(ids), Segment("placeholder", "answer", ids["answer"])]
    seq = engine.open(_call(template, sum(map(len, segments))))
    handles, start = {}, 0
    try:
        await seq.extend(segments, [COMPUTE] * len(segments))
        for segment in segments:
            if segment.kind == "placeholder":
                handle = await seq.lend(start, len(segment), [USE])
                if handle is not None:
                    handles[segment.name] = handle
            start += len(segment)
    finally:
        await seq.close()
    return handles


def _call(template: Template, capacity: int) -> Call:
    return Call(
        node="profile",
        template=template,
        capacity=capacity,
        namespace=NAMESPACE,
        priority=AHEAD,
    )


def _write(path: Path, text: str) -> None:
    """Keep the profile; without a place to write it is measured again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda new: new.write_text(text + "\n", encoding="utf-8"))
