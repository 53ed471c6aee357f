"""How far rotated base KV is from dense by the length of texts: why there are levels for long ones.

    python benchmarks/text_length.py --data DIR

A second agent reads what a first one read and wrote, two texts of the same length, cut from rows of
a suite that are put together. Literals and leading tokens are computed, the rest is rotated to its
place, as levels of `auto` do before anything is learned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from kvcomm.engine.base import COMPARED, Engine, Variant
from kvcomm.engine.load import load_engine
from kvcomm.engine.models import hardware
from kvcomm.reuse.auto import SHARES
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.exchanges import templates
from kvcomm.runtime.priors import read_before, spec_of

LENGTHS = (64, 128, 256, 512, 1024)
# A suite, and the fields of its rows that are read and written.
KINDS = {
    "hotpotqa": ("context", "context"),
    "math500": ("problem", "solution"),
    "humaneval": ("prompt", "canonical_solution"),
    "gsm8k": ("question", "answer"),
}


def texts(folder: Path, suite: str, field: str) -> list[str]:
    """One field of all rows; of passages, one text each."""
    lines = (folder / f"{suite}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)[field] for line in lines]
    if suite != "hotpotqa":
        return found
    return [f"{title}: {''.join(said)}" for row in found for title, said in row]


async def divergences(
    engine: Engine, question: Sequence[int], answer: Sequence[int], shares: Sequence[float]
) -> list[float]:
    """The divergence of the second agent's prompt for each share of leading tokens."""
    solver, checker = templates(engine.codec)
    ids = {"question": tuple(question), "answer": tuple(answer)}
    await read_before(engine, solver, ids, behind="answer")
    levels = [Recipe(f"{share}", first=len(question), leading=share) for share in shares]
    segments = checker.fill(ids)
    evaluation = await engine.evaluate(
        spec_of(checker, sum(map(len, segments))),
        segments,
        [Variant(Realign(level, borrows=True)) for level in levels],
        distinct=False,
        tokens=COMPARED,
    )
    return [found.divergence.mean for found in evaluation.variants if found.divergence]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    levels = {f"{share:.0%}": share for share in SHARES}
    results: dict[str, dict] = {}
    with load_engine("smollm2-135m") as engine:

        def cut(rows: list[str], length: int, seed: str) -> list[int]:
            draw, ids = random.Random(seed), list[int]()
            while len(ids) < length:
                ids += engine.codec.encode(draw.choice(rows) + "\n\n")
            return ids[:length]

        for length in LENGTHS:
            for suite, (question, answer) in KINDS.items():
                read, wrote = (texts(options.data, suite, f) for f in (question, answer))
                samples = [
                    asyncio.run(
                        divergences(
                            engine,
                            cut(read, length, f"{number} read"),
                            cut(wrote, length, f"{number} wrote"),
                            list(levels.values()),
                        )
                    )
                    for number in range(options.samples)
                ]
                found = {
                    name: {"mean": statistics.fmean(values), "largest": max(values)}
                    for name, values in zip(levels, zip(*samples, strict=True), strict=True)
                }
                results.setdefault(str(length), {})[suite] = found
                print(length, suite, {n: round(v["mean"], 4) for n, v in found.items()}, flush=True)
        value = {"hardware": hardware(engine), "samples": options.samples, "tokens": results}
    if options.out:
        options.out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
