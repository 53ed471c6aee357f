"""Which base KV errs least while nothing is learned: standalone, or as another agent read it.

    python benchmarks/context_base.py --data DIR

A second agent reads the same texts as the first, and what the first one wrote. Its prompt is
realigned by rotating alone, with literals and the first tokens of every text computed. Base KV of
the texts is that of a standalone prefill, as in `kvcomm`, or is cut from the first agent's own
prompt, where every text was read together with those before it, as in `auto`. Base KV of the
message is the same in both. What is reported is the divergence from dense, as audits measure it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from kvcomm.agents import critic, solver
from kvcomm.engine.attention import Pack, Part, packed_forward
from kvcomm.engine.base import COMPARED, Divergence
from kvcomm.engine.divergence import divergence
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import hardware, load_engine
from kvcomm.engine.rows import Row
from kvcomm.kv import KV
from kvcomm.prompt import Segment

WRITTEN = 48
ROOM = 4096
# First tokens of a text that are computed: so many, and this share of it.
REPAIRS = ((4, 0.0), (16, 0.15))
CLOSING = "\n\nGive your own short solution, and end with the answer."


def texts_of(suite: str, row: dict) -> tuple[list[str], str]:
    """The texts that become placeholders, and the question behind them."""
    if suite == "hotpotqa":
        passages = [f"{title}: {''.join(lines)}" for title, lines in row["context"][:6]]
        return passages, row["question"]
    return [row["question"]], "Solve this problem."


class Bench:
    """Rows of one model, computed and put together by hand."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine

    def prompt(self, role: str, texts: Sequence[str], question: str, heard: Sequence[int]) -> list:
        """Segments of a prompt; the message is the last placeholder."""
        codec = self.engine.codec
        opening, _ = codec.encode_structured(
            f"<|im_start|>system\n{role}<|im_end|>\n<|im_start|>user\n"
        )
        end, _ = codec.encode_structured(f"{CLOSING}<|im_end|>\n<|im_start|>assistant\n")
        segments = [Segment("literal", "opening", tuple(opening))]
        for number, text in enumerate(texts):
            segments.append(Segment("placeholder", str(number), tuple(codec.encode(text))))
            segments.append(Segment("literal", "", tuple(codec.encode("\n\n"))))
        segments.append(Segment("literal", "", tuple(codec.encode(question))))
        if heard:
            segments.append(Segment("literal", "", tuple(codec.encode("\n\nThe solver: "))))
            segments.append(Segment("placeholder", "message", tuple(heard)))
        return [*segments, Segment("literal", "closing", tuple(end))]

    def row(self, ids: Sequence[int] = ()) -> Row:
        """A row that holds `ids`, not computed."""
        row = Row(self.engine.new_slab(ROOM), self.engine.rope)
        row.ids += ids
        return row

    def compute(self, row: Row, positions: Sequence[int], wanted: int = 1) -> torch.Tensor:
        """Compute these positions; logits of the last `wanted`."""
        ids = [row.ids[position] for position in positions]
        last = range(len(ids) - wanted, len(ids))
        pack = Pack([Part(row.slab, 0, positions)])
        return packed_forward(self.engine.network, ids, list(positions), list(last), pack)

    def answer(self, row: Row, tokens: int) -> tuple[list[int], torch.Tensor]:
        """Compute the whole row and decode greedily: tokens, and the logits before each."""
        logits, said, seen = self.compute(row, range(len(row))), [], []
        for _ in range(tokens):
            seen.append(logits[-1])
            said.append(int(logits[-1].argmax()))
            row.ids.append(said[-1])
            logits = self.compute(row, range(len(row) - 1, len(row)))
        return said, torch.stack(seen)

    def standalone(self, ids: Sequence[int]) -> KV:
        """Base KV of a text alone."""
        header = self.engine.bases.header
        row = self.row([*header, *ids])
        self.compute(row, range(len(row)))
        return row.position_free(range(len(header), len(row)))

    def realigned(
        self, segments: Sequence[Segment], bases: dict[str, KV], first: int, share: float
    ) -> tuple[Row, list[int]]:
        """A row with rotated base KV, and the positions that are left to compute."""
        row, left = self.row(), []
        for segment in segments:
            start, size = len(row), len(segment)
            base = bases.get(segment.name)
            if base is None:
                row.ids += segment.ids
                left += range(start, start + size)
                continue
            skip = min(max(first, int(share * size)), len(base))
            row.fill(segment.ids, range(skip, len(base)), base.slice(skip, len(base)))
            left += [*range(start, start + skip), *range(start + len(base), start + size)]
        return row, left

    def read(self, row: Row, segments: Sequence[Segment]) -> dict[str, KV]:
        """KV of the placeholders of a computed prompt, by name."""
        found, at = {}, 0
        for segment in segments:
            if segment.kind == "placeholder":
                found[segment.name] = row.position_free(range(at, at + len(segment)))
            at += len(segment)
        return found

    def apart(
        self,
        segments: Sequence[Segment],
        bases: dict[str, KV],
        repair: tuple[int, float],
        said: Sequence[int],
        dense: torch.Tensor,
    ) -> tuple[Divergence, float]:
        """How far a prompt with rotated base KV is from dense's answer, and its computed share."""
        row, left = self.realigned(segments, bases, *repair)
        prompt = len(row)
        logits = self.compute(row, left)
        row.ids += said[:-1]
        rest = self.compute(row, range(prompt, len(row)), len(said) - 1)
        return divergence(dense, torch.cat([logits, rest])), len(left) / prompt

    def sample(self, texts: Sequence[str], question: str) -> dict[str, tuple[float, ...]]:
        """Divergence, at the first token too, and computed share, for every base and repair."""
        mine = self.prompt(solver().system, texts, question, ())
        first = self.row([i for segment in mine for i in segment.ids])
        prompt = len(first)
        heard, _ = self.answer(first, WRITTEN)
        message = first.position_free(range(prompt, prompt + WRITTEN))
        read = self.read(first, mine) | {"message": message}
        alone = {s.name: self.standalone(s.ids) for s in mine if s.kind == "placeholder"}
        alone["message"] = message
        theirs = self.prompt(critic().system, texts, question, heard)
        ids = [i for segment in theirs for i in segment.ids]
        said, dense = self.answer(self.row(ids), COMPARED)
        found = {}
        for name, bases in (("standalone", alone), ("read by another", read)):
            for repair in REPAIRS:
                apart, share = self.apart(theirs, bases, repair, said, dense)
                found[f"{name}, first {repair[0]}"] = apart.mean, apart.first, share
        return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, dict] = {}
    with load_engine("smollm2-135m") as engine, torch.inference_mode():
        assert isinstance(engine, LocalEngine)
        bench = Bench(engine)
        for suite in ("gsm8k", "hotpotqa"):
            lines = (options.data / f"{suite}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines[-options.limit :]]
            samples = [bench.sample(*texts_of(suite, row)) for row in rows]
            for name in samples[0]:
                means, firsts, shares = zip(*(sample[name] for sample in samples), strict=True)
                results.setdefault(suite, {})[name] = {
                    "divergence_mean": statistics.fmean(means),
                    "divergence_median": statistics.median(means),
                    "divergence_largest": max(means),
                    "first_token_mean": statistics.fmean(firsts),
                    "computed": statistics.fmean(shares),
                }
                print(suite, name, {k: round(v, 4) for k, v in results[suite][name].items()})
        found = {"hardware": hardware(engine), "samples": options.limit, "suites": results}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
