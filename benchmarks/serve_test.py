"""vLLM on loopback: the engines' contract, and exact beside dense.

    python benchmarks/serve_test.py --server .venv-serve/bin/python [--out FILE.json]

Starts a server with the embedded model, runs the contract of `tests/conformance` against it, then a
chain of three agents and a debate in both modes, and stops the server whatever happens. Every
sample has a task of its own and a namespace of its own, so `exact` finds nothing of earlier
samples. With --base-url a server that runs already is used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvcomm import Session, load_served
from kvcomm.bench.workload import Workload
from kvcomm.engine.base import Engine
from kvcomm.engine.models import fetch_model, hardware
from kvcomm.graphs import AgentGraph, chain, debate

MODEL = "smollm2-135m"
# The last agent of the chain reads about 1,500 tokens.
WORK = Workload(agents=3, prefix=512, input=860, output=96)
START_S = 300.0
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"),
    *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--block-size", "32"),
)
ROOT = Path(__file__).parents[1]


@contextmanager
def vllm(python: Path) -> Iterator[str]:
    """A server's address, once it is healthy."""
    folder = fetch_model(MODEL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), *OPTIONS]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        # A session of its own: the server's own processes are stopped with it.
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            await_health(server, url, Path(log.name))
            yield url
        finally:
            stop(server)


def await_health(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server answers. Exits with the end of its log when it does not."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-30:])
    sys.exit(f"{tail}\nvLLM did not start within {START_S:g} s; its log ends above")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started."""
    for signum, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(server.pid, signum)
            server.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    server.wait()


@dataclass
class Measured:
    """One run: of the last agent, and of all of it."""

    prompt: int
    ahead: int
    prefix: int
    ttft_s: float
    wall_s: float
    text: str


def graphs(engine: Engine) -> dict[str, AgentGraph]:
    """A chain of three agents, and a debate of two before a judge."""
    members = [node.agent for node in WORK.build(engine.codec).nodes.values()]
    first, second, third = members
    return {"chain": chain(*members), "debate": debate(first, second, judge=third)}


def measure(engine: Engine, graph: AgentGraph, mode: str, sample: int) -> Measured:
    """Run a sample of the workload."""
    task = WORK.task(engine.codec, sample)
    space = f"{graph.name} {sample}"
    with Session(engine, reuse=mode, state=None, runs=None, namespace=space) as session:
        result = session.run(graph, task)
    last = result.calls[-1]
    return Measured(
        last.report.prompt_tokens,
        last.total("ahead"),
        last.total("prefix"),
        last.report.ttft_s,
        result.totals.wall_s,
        result.answer,
    )


def compare(engine: Engine, samples: int) -> dict[str, Any]:
    """Both modes on the same samples, in turns; medians, and how often they said the same."""
    found: dict[str, Any] = {}
    for name, graph in graphs(engine).items():
        measure(engine, graph, "dense", samples)  # warm up
        runs: dict[str, list[Measured]] = {"dense": [], "exact": []}
        for sample in range(samples):
            for mode in runs if sample % 2 == 0 else reversed(runs):
                runs[mode].append(measure(engine, graph, mode, sample))
        found[name] = {
            mode: {
                field: statistics.median(getattr(run, field) for run in done)
                for field in ("prompt", "ahead", "prefix", "ttft_s", "wall_s")
            }
            for mode, done in runs.items()
        }
        pairs = list(zip(runs["dense"], runs["exact"], strict=True))
        found[name]["ttft_ratio"] = statistics.median(d.ttft_s / e.ttft_s for d, e in pairs)
        found[name]["same_text"] = f"{sum(d.text == e.text for d, e in pairs)} of {samples}"
        print(name, json.dumps(found[name], indent=1), flush=True)
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
    options.add_argument("--out", type=Path, help="where the numbers are kept, as JSON")
    given = options.parse_args()
    if given.base_url:
        work(given.base_url, given)
    else:
        # Ctrl-C in make reaches this process, which then ends the server.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with vllm(given.server) as url:
            work(url, given)


def work(url: str, given: argparse.Namespace) -> None:
    """The contract, then the numbers."""
    contract(url)
    with load_served(url, MODEL) as engine:
        found = compare(engine, given.samples)
    with urllib.request.urlopen(f"{url}/version") as response:
        version = json.load(response)["version"]
    found["about"] = {
        "hardware": hardware(SimpleNamespace(device="cpu", dtype="float32")),
        "server": f"vllm-cpu {version} {' '.join(OPTIONS)}",
        "model": MODEL,
        "workload": str(WORK),
        "samples": given.samples,
        "command": "make serve-test",
    }
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ratio = found["chain"]["ttft_ratio"]
    print(f"time to first token of the chain's last agent: exact {ratio:.1f} times shorter")


if __name__ == "__main__":
    main()
