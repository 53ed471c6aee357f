"""Which form of linear offsets errs least: heads together, heads apart, or a low rank.

    python benchmarks/offset_forms.py --data DIR

Runs the calls of `kvcomm bench fidelity` on gsm8k and realigns every placeholder whole, so that
nothing but the prediction differs. The low-rank form is not part of the library: it projects the
features of all heads of a layer on the first principal axes of the first text that it sees.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kvcomm.cli.topologies import build_graph
from kvcomm.engine.models import hardware, load_engine
from kvcomm.kv import KV
from kvcomm.reuse.offsets.linear import FORGET, GROWTH, LinearOffsets, _Sums
from kvcomm.reuse.recipe import LINEAR, Realign
from kvcomm.runtime.fidelity import Fidelity
from kvcomm.tasks.suites import load_suite

LAYERS = slice(1, None)  # the first layer's offset is zero


class LowRank(LinearOffsets):
    """Ridge regression on `rank` principal axes of a layer's features."""

    def __init__(self, rank: int) -> None:
        super().__init__(heads="together")
        self.rank = rank
        self._axes: torch.Tensor | None = None  # [layers - 1, features, rank]
        self._middle: torch.Tensor | None = None  # [layers - 1, 1, features]

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        if self._axes is None or self._middle is None:
            # As many axes as asked for, also of a text with fewer tokens: the rest are random.
            noise = 1e-3 * torch.randn(x.shape[0], x.shape[2], x.shape[2])
            self._middle = x.mean(dim=1, keepdim=True)
            spread = x - self._middle
            scale = spread.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
            _, _, axes = torch.linalg.svd(torch.cat([spread / scale, noise], dim=1))
            self._axes = (axes[:, : self.rank] / scale).mT.contiguous()
        return (x - self._middle) @ self._axes

    def predict(self, base: KV) -> KV:
        """The offset of every token."""
        if self._weights is None or self._bias is None:
            raise ValueError("no linear offsets learned yet")
        x = self._project(self._features(base, LAYERS))
        offset = KV(torch.zeros_like(base.keys), torch.zeros_like(base.values))
        self._unpack(torch.baddbmm(self._bias, x, self._weights), offset, LAYERS)
        return offset

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Count the tokens of one computed placeholder."""
        if len(base) == 0:
            return
        x, y = (self._features(kv, LAYERS).float() for kv in (base, offset))
        x = self._project(x)
        left = total = float(y.double().square().sum())
        if self._weights is not None and self._bias is not None:
            left = float((y - torch.baddbmm(self._bias, x, self._weights)).double().square().sum())
        self._left, self._total = FORGET * self._left + left, FORGET * self._total + total
        if self._sums is None:
            groups, features = x.shape[0], y.shape[2]
            zeros = partial(x.new_zeros, dtype=torch.float64)
            self._sums = _Sums(
                zeros((groups, self.rank, self.rank)),
                zeros((groups, self.rank, features)),
                zeros((groups, self.rank)),
                zeros((groups, features)),
                count=0,
            )
        self._sums.xx += (x.mT @ x).double()
        self._sums.xy += (x.mT @ y).double()
        self._sums.x += x.double().sum(dim=1)
        self._sums.y += y.double().sum(dim=1)
        self._sums.count += x.shape[1]
        self._literal.observe(literal)
        self._seen += 1
        if self.tokens >= GROWTH * self._solved_at:
            self._solve()

    @property
    def nbytes(self) -> int:
        """Bytes of everything, the axes included."""
        return super().nbytes + (self._axes.nbytes if self._axes is not None else 0)


FORMS = {
    "together": partial(LinearOffsets, heads="together"),
    "apart": partial(LinearOffsets, heads="apart"),
    "rank 192": partial(LowRank, 192),
    "rank 128": partial(LowRank, 128),
    "rank 64": partial(LowRank, 64),
}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--graph", default="chain")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--held-out", type=int, default=20)
    given = parser.parse_args()
    torch.manual_seed(0)
    rows, tasks = load_suite("gsm8k", given.data)
    graph = build_graph(given.graph, agents=given.agents, temperature=0.0)
    whole = replace(LINEAR, first=0, leading=0.0, deviating=0.0)
    with load_engine("smollm2-135m", device="cpu") as engine:
        engine.offsets.families = {**engine.offsets.families, **FORMS}
        bench = Fidelity(
            engine,
            graph,
            warmup=given.warmup,
            held_out=given.held_out,
            passages=frozenset(rows.inputs),
            methods={name: Realign(replace(whole, name=name, offsets=name)) for name in FORMS},
        )
        found = asyncio.run(bench.run([task.inputs for task in tasks]))
        machine = hardware(engine)
    forms = {
        method.name: {
            "divergence": method.to_json()["divergence"],
            "top1_agreement": method.to_json()["top1_agreement"],
            "state_bytes": method.state_bytes,
        }
        for method in found
    }
    print(json.dumps({"hardware": machine, "calls": given.held_out, "forms": forms}, indent=1))


if __name__ == "__main__":
    main()
