"""Throughput: tokens a second of rows that decode together, graphs a second of runs in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from kvcomm.agents import critic, editor, solver
from kvcomm.bench import Findings
from kvcomm.bench.workload import decoded, ids_of
from kvcomm.engine.base import Engine
from kvcomm.engine.clock import done_at
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import chain
from kvcomm.reuse.policy import Exact
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.record import Recorder
from kvcomm.trace.text import plural


async def throughput(
    engine: LocalEngine,
    rows: Sequence[int],
    concurrent: Sequence[int],
    *,
    prompt: int = 512,
    tokens: int = 32,
    samples: int = 3,
    on_step: Callable[[str], None] = lambda what: None,
) -> Findings:
    """Measure every number of rows, and every number of graphs in flight.

    Rows have prompts of `prompt` tokens and decode `tokens` each; they are measured in turns with
    one row of transformers' `generate`, `samples` times, and the best of each counts (noise only
    ever slows).
    """
    generate, rates, flights = 0.0, dict.fromkeys(sorted(rows), 0.0), dict[int, float]()
    with engine.plain() as plain:
        for _ in range(samples):
            generate = max(generate, await _tokens_a_second(plain, 1, prompt, tokens))
            on_step(f"generate: {generate:.1f} tokens/s")
            for count in rows:
                found = await _tokens_a_second(engine, count, prompt, tokens)
                rates[count] = max(rates[count], found)
                on_step(f"{count} rows: {found:.1f} tokens/s")
    for count in sorted(concurrent):
        flights[count] = await _graphs_a_second(engine, count, tokens)
        on_step(f"{count} graphs in flight: {flights[count]:.2f} graphs/s")
    table = [("generate, one row", f"{generate:.1f} tokens", "1.00×", "")]
    for count, rate in rates.items():
        one = f"{rate / rates[1]:.2f}×" if 1 in rates else ""
        times = f"{rate / generate:.2f}×"
        table.append((plural(count, "row"), f"{rate:.1f} tokens", times, one))
    for count, rate in flights.items():
        one = f"{rate / flights[1]:.2f}×" if 1 in flights else ""
        table.append((f"{plural(count, 'graph')} in flight", f"{rate:.2f} graphs", "", one))
    value = {
        "decode": [{"rows": count, "tokens_per_s": rate} for count, rate in rates.items()],
        "generate_tokens_per_s": generate,
        "graphs": [{"concurrent": count, "graphs_per_s": rate} for count, rate in flights.items()],
    }
    return Findings(value, ("what", "a second", "to generate", "to one"), table)


async def _tokens_a_second(engine: Engine, rows: int, prompt: int, tokens: int) -> float:
    """Tokens a second from the moment when every row has its first."""
    prompts = [ids_of(engine.codec, prompt, f"row {number}") for number in range(rows)]
    times = await asyncio.gather(
        *(decoded(engine, ids, tokens, seed) for seed, ids in enumerate(prompts))
    )
    began, ended = max(found[0] for found in times), max(found[-1] for found in times)
    return sum(at > began for found in times for at in found) / (ended - began)


async def _graphs_a_second(engine: LocalEngine, count: int, tokens: int) -> float:
    """Graphs a second with `count` chains of three agents in flight, exact."""
    graph = chain(*(make(max_tokens=tokens) for make in (solver, critic, editor)))

    async def one(number: int) -> None:
        inputs = {"task": f"What is {number + 12} times {number + 7}, and why?"}
        spec = RunSpec(graph, Exact(), inputs, number, f"throughput {count}")
        await GraphRun(engine, spec).run(Recorder(None))

    began = done_at(engine.device)
    await asyncio.gather(*(one(number) for number in range(count)))
    return count / (done_at(engine.device) - began)
