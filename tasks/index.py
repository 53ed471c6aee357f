"""Reading a corpus ahead: the KV of its passages is computed before anybody asks.

A passage is read in the company of others, behind one that has been read already: as in the prompts
that will want its KV. What is known already is left out, so an index that was interrupted goes on
where it was, and one whose files have changed computes what is new.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvcomm.engine.base import BACKGROUND, CallSpec
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.prompt import Hole, Text, compile_template
from kvcomm.runtime.reading import READ, read_ahead
from kvcomm.tasks.retrieval import passages_of
from kvcomm.tasks.rows import read_rows

# Passages of one prompt have so many tokens together.
PROMPT = 1024


def corpus_of(path: Path) -> tuple[str, ...]:
    """The passages of a folder of texts, or of a file with one passage a line, each once.

    A line is `{"text": …}`, with a `title` or without, or a text. Raises `UsageError`.
    """
    if path.is_dir():
        return tuple(dict.fromkeys(passages_of(path)))
    found = []
    for row in read_rows(path):
        value = row.value
        text = value.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{row.where} is no passage: it has no `text`")
        title = str(value.get("title") or "").strip()
        found.append(f"{title}\n{text.strip()}" if title else text.strip())
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Index:
    """What there is to read of a corpus: `groups` of passages as ids, each with one in front.

    `known` passages of all `passages` are there already. What is missing has so many `tokens`, and
    its KV so many `nbytes`.
    """

    passages: int
    known: int
    tokens: int
    nbytes: int
    groups: Sequence[Sequence[tuple[int, ...]]]

    @property
    def read(self) -> int:
        """Tokens of all groups: more than what is missing, as some are read once more."""
        return sum(len(one) for group in self.groups for one in group)


def plan(
    engine: LocalEngine,
    passages: Sequence[str],
    *,
    contexts: int = 1,
    dtype: str | None = None,
    namespace: str = "",
) -> Index:
    """What is to be read so that every passage has been read in so many `contexts`.

    `dtype` is that of numbers on disk, where it is not the model's. Raises
    `UsageError` for a passage that does not fit the model's context.
    """
    ids = list(dict.fromkeys(tuple(engine.codec.encode(text)) for text in passages))
    limit = engine.max_context // 2
    for one in ids:
        if len(one) > limit:
            start = engine.codec.decode(one[:16])
            raise UsageError(
                f"the passage {start!r}… has {len(one):,} tokens, {limit:,} is the most for "
                f"{engine.model}: make smaller passages"
            )
    counts = [engine.texts.contexts(namespace, one) for one in ids]
    groups: list[list[tuple[int, ...]]] = []
    for turn in range(contexts):
        wanted = [one for one, count in zip(ids, counts, strict=True) if count <= turn]
        # Another company in each turn, and the same one when it goes on.
        random.Random(turn).shuffle(wanted)
        groups += _grouped(wanted, ids)
    missing = [(len(one), contexts - n) for one, n in zip(ids, counts, strict=True) if n < contexts]
    per_token = engine.slot_bytes
    if dtype is not None:
        written: torch.dtype = getattr(torch, dtype)
        per_token = per_token * written.itemsize // engine.network.dtype.itemsize
    tokens, stored = sum(size * left for size, left in missing), sum(size for size, _ in missing)
    return Index(len(ids), len(ids) - len(missing), tokens, stored * per_token, groups)


def _grouped(
    wanted: Sequence[tuple[int, ...]], every: Sequence[tuple[int, ...]]
) -> Iterable[list[tuple[int, ...]]]:
    """Prompts of some passages, each behind one of those that were read before."""
    new = set(wanted)
    before = next((one for one in every if one not in new), wanted[-1] if wanted[1:] else None)
    group: list[tuple[int, ...]] = []
    for one in wanted:
        if group and sum(map(len, group)) + len(one) > PROMPT:
            yield [before, *group] if before else group
            before, group = group[-1], []
        group.append(one)
    if group:
        yield [before, *group] if before else group


async def build(
    engine: LocalEngine,
    index: Index,
    on_group: Callable[[int, int], None] = lambda done, of: None,
    namespace: str = "",
) -> int:
    """Read what is missing; returns the tokens that were computed.

    `on_group` hears how many tokens of passages are read, of how many. What is read is written at
    once: whoever is interrupted loses one prompt.
    """
    computed = done = 0
    for group in index.groups:
        names = [f"passage{number}" for number in range(len(group))]
        user: list[Text | Hole] = []
        for name in names:
            user += [Hole(name), Text("\n\n")]
        template = compile_template(engine.codec, [Text("Read these texts.")], user)
        segments = template.fill(dict(zip(names, group, strict=True)))
        call = CallSpec(
            "index",
            template,
            sum(map(len, segments)),
            reuse=READ.options,
            shares=True,
            namespace=namespace,
            priority=BACKGROUND,
        )
        found = await read_ahead(engine, call, segments)
        computed += sum(usage.computed for usage in found.segments)
        done += sum(map(len, group))
        on_group(done, index.read)
    return computed
