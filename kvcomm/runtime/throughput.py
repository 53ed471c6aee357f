"""Throughput: tokens a second of rows that decode together, graphs a second of runs in flight."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvcomm.agents import critic, editor, solver
from kvcomm.engine.base import Answer, Call, Engine, EngineSequence
from kvcomm.engine.clock import done_at
from kvcomm.graphs import chain
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step
from kvcomm.reuse.policy import Exact
from kvcomm.runtime.scheduler import Scheduler
from kvcomm.runtime.workload import text_of
from kvcomm.sampling import Sampling
from kvcomm.trace.record import Recorder

COMPUTE = Step("compute", "benchmark")
# Sampled hot, so that no row ends early and every row says something else.
HOT = 2.0


@dataclass
class Throughput:
    """Measures an engine, and `plain` beside it: the same model by transformers' `generate`.

    Rows have prompts of `prompt` tokens and decode `tokens` each; they are measured in turns with
    `generate`, `samples` times, and the best of each counts (noise only ever slows).
    """

    engine: Engine
    plain: Engine
    prompt: int = 512
    tokens: int = 32
    samples: int = 3
    on_step: Callable[[str], None] = lambda what: None
    decode: dict[int, float] = field(default_factory=dict)
    generate: float = 0.0
    graphs: dict[int, float] = field(default_factory=dict)

    async def run(self, rows: Sequence[int], concurrent: Sequence[int]) -> None:
        """Measure every number of rows, and every number of graphs in flight."""
        for _ in range(self.samples):
            self.generate = max(self.generate, await self._decode(self.plain, 1))
            self.on_step(f"generate: {self.generate:.1f} tokens/s")
            for count in rows:
                found = await self._decode(self.engine, count)
                self.decode[count] = max(self.decode.get(count, 0.0), found)
                self.on_step(f"{count} rows: {found:.1f} tokens/s")
        for count in concurrent:
            self.graphs[count] = await self._graphs(count)
            self.on_step(f"{count} graphs in flight: {self.graphs[count]:.2f} graphs/s")

    async def _decode(self, engine: Engine, rows: int) -> float:
        """Tokens a second from the moment when every row has its first."""
        seqs = [engine.open(self._call(row)) for row in range(rows)]
        try:
            times = await asyncio.gather(*(self._row(seq, i) for i, seq in enumerate(seqs)))
        finally:
            for seq in seqs:
                await seq.close()
        began = max(found[0] for found in times)
        ended = max(found[-1] for found in times)
        return sum(sum(at > began for at in found) for found in times) / (ended - began)

    async def _row(self, seq: EngineSequence, number: int) -> list[float]:
        ids = self._ids(number)
        await seq.extend([Segment("placeholder", "text", ids[:-1])], [COMPUTE])
        answer = Answer(Sampling(temperature=HOT, max_tokens=self.tokens), seed=number)
        await seq.extend([Segment("placeholder", "text", ids[-1:])], [COMPUTE], answer=answer)
        return [token.at async for token in seq.decode()]

    def _ids(self, number: int) -> tuple[int, ...]:
        text = text_of(self.engine.codec, self.prompt + 8, random.Random(number))
        return tuple(self.engine.codec.encode(text)[: self.prompt])

    def _call(self, number: int) -> Call:
        return Call(
            node=f"row {number}",
            template=Template(((), ()), ("text",), "throughput"),
            capacity=self.prompt + self.tokens,
        )

    async def _graphs(self, count: int) -> float:
        """Graphs a second with `count` chains of three agents in flight, exact."""
        graph = chain(*(make(max_tokens=self.tokens) for make in (solver, critic, editor)))

        async def one(number: int) -> None:
            scheduler = Scheduler(
                self.engine,
                graph,
                Exact(),
                inputs={"task": f"What is {number + 12} times {number + 7}, and why?"},
                seed=number,
                namespace=f"throughput {count}",
            )
            await scheduler.run(Recorder(None), [])

        began = done_at(self.engine.device)
        await asyncio.gather(*(one(number) for number in range(count)))
        return count / (done_at(self.engine.device) - began)

    def to_json(self) -> dict[str, Any]:
        """The object of `kvcomm bench throughput --json`."""
        return {
            "decode": [{"rows": n, "tokens_per_s": v} for n, v in sorted(self.decode.items())],
            "generate_tokens_per_s": self.generate,
            "graphs": [
                {"concurrent": n, "graphs_per_s": v} for n, v in sorted(self.graphs.items())
            ],
        }
