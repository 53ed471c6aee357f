"""How far `kvcomm plan` is from what is measured on the same machine.

    python benchmarks/plan_validation.py --out benchmarks/results/plan-validation.json

Rounds that interleave everything: the hardware, a chain and a debate in dense and exact, alone and
several at once. Medians over rounds of the hardware predict medians over rounds of the runs; both
modes are predicted from the trace of one dense run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvcomm import Session, __version__, load_engine
from kvcomm.agents import Agent
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.plan.simulate import Fleet, estimate
from kvcomm.plan.workload import read_work
from kvcomm.runtime.hardware import Measured
from kvcomm.runtime.workload import text_of
from kvcomm.sampling import Sampling
from kvcomm.trace.read import TraceRun, read_trace

MODES = ("dense", "exact")
ROLE, TASK, ANSWER = 180, 60, 48
# What is measured of the hardware: no prompt is longer.
CHUNKS, FAR = (1, 2, 4, 8, 16, 64, 256, 512), 512
# Graph, and how many at once.
CASES = (("chain", 1), ("debate", 1), ("chain", 4))
Times = dict[str, float]


def graphs(engine: LocalEngine) -> dict[str, AgentGraph]:
    """A chain of three, and a debate of two in one round with a judge."""
    members = [
        Agent(
            name,
            system=text_of(engine.codec, ROLE, random.Random(name)),
            prompt="{task}\n\n{history}\n\n{messages}\n\nNow write down your own view of it.",
            sampling=Sampling(max_tokens=ANSWER, temperature=0.0),
        )
        for name in ("ann", "ben", "cat")
    ]
    judge = replace(members[2], name="judge")
    return {"chain": chain(*members), "debate": debate(*members[:2], rounds=1, judge=judge)}


async def runs(
    engine: LocalEngine, graph: AgentGraph, mode: str, count: int, space: str, folder: Path
) -> list[TraceRun]:
    """Traces of `count` runs at once, of different tasks, with empty caches."""
    session = Session(engine, reuse=mode, state=None, runs=None, namespace=space)

    async def one(number: int) -> TraceRun:
        out = folder / f"{space} {number}"
        task = text_of(engine.codec, TASK, random.Random(f"task {number}"))
        await session.arun(graph, task, out=out)
        return read_trace(out / "trace.jsonl")

    found = list(await asyncio.gather(*map(one, range(count))))
    engine.forget(space)
    return found


def times(found: Sequence[TraceRun]) -> Times:
    """Medians over runs: the last agent's time to first token, and the whole."""
    calls = [{v.node: v.call for v in run.calls if v.call} for run in found]
    return {
        "ttft_s": statistics.median(
            c[run.started.answer_node].ttft_s for c, run in zip(calls, found, strict=True)
        ),
        "end_to_end_s": statistics.median(max(x.finished_at for x in c.values()) for c in calls),
    }


async def rounds(engine: LocalEngine, count: int, folder: Path) -> tuple[Measured, dict, dict]:
    """Everything, `count` times, in turns: the hardware once before every case."""
    bench = Measured(engine, chunks=CHUNKS, far=FAR)
    measured: dict[tuple[str, int, str], list[Times]] = defaultdict(list)
    traces: dict[str, TraceRun] = {}
    for number in range(count):
        for name, at_once in CASES:
            began = time.perf_counter()
            await bench.round()
            for mode in MODES if number % 2 == 0 else MODES[::-1]:
                space = f"{name} {at_once} {mode} {number}"
                found = await runs(engine, graphs(engine)[name], mode, at_once, space, folder)
                measured[name, at_once, mode].append(times(found))
                if mode == "dense" and at_once == 1:
                    traces[name] = found[0]
            took = time.perf_counter() - began
            print(f"round {number + 1}, {at_once} × {name}: {took:.0f} s", file=sys.stderr)
    return bench, measured, traces


def main() -> None:
    """Measure, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, load_engine(options.model) as engine:
        bench, measured, traces = asyncio.run(rounds(engine, options.rounds, Path(folder)))
        hardware = bench.result()
        cases = []
        for (name, at_once, mode), found in measured.items():
            fleet = Fleet(hardware, concurrent=at_once, graphs=at_once)
            said = estimate(read_work(traces[name]), mode, fleet).to_json()
            case: dict[str, object] = {"graph": name, "at_once": at_once, "mode": mode}
            for what in ("ttft_s", "end_to_end_s"):
                true = statistics.median(times[what] for times in found)
                predicted = said[what]["median"]
                case[what] = {
                    "measured": true,
                    "all": [times[what] for times in found],
                    "predicted": predicted,
                    "error_percent": 100 * (predicted / true - 1),
                }
            cases.append(case)
    value = {
        "command": "python " + " ".join(sys.argv),
        "versions": {"kvcomm": __version__, "python": platform.python_version()},
        "rounds": options.rounds,
        "tokens": {"role": ROLE, "task": TASK, "answer": ANSWER},
        "hardware": hardware.model_dump(mode="json"),
        "spread": {
            "decode of one row": bench.decode[1],
            "prefill of 256 tokens": bench.prefill[256],
        },
        "cases": cases,
    }
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
