"""What an evaluation loses when a machine of its cluster dies.

    python benchmarks/ray_cluster.py --out benchmarks/results/ray-cluster.json

Two nodes of Ray on this machine with a replica each, and the evaluation behind `kvcomm eval` on
them: once undisturbed, and once with a node killed after some samples. The answers have to be the
same, sample by sample. Exit code 1 when they are not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A cluster on one machine asks for no token, and says nothing to anybody.
os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})

import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from kvcomm import __version__, load_ray
from kvcomm.agents import critic, judge, solver
from kvcomm.cli.topologies import adjusted
from kvcomm.engine.models import hardware
from kvcomm.errors import ReplicaLost
from kvcomm.graphs import fully_connected
from kvcomm.tasks import Graders, load_suite
from kvcomm.tasks.evaluate import EvalPlan, Evaluation
from kvcomm.tasks.record import SAMPLES, Sample
from kvcomm.tasks.summary import whole_summary

# Nodes that look for an address of their own may find one that others cannot reach, and hang; Ray
# takes 127.0.0.1 to mean: look for one.
NODE = {"node_ip_address": "127.0.0.2", "num_cpus": 1, "num_gpus": 0}
QUALITY = {"target_divergence": 0.02, "audit_rate": 0.1, "repair_budget": 0.25}


@contextmanager
def two_nodes() -> Iterator[Callable[[], None]]:
    """A cluster of two nodes that this process has joined; yields how to kill the other one."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        other = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=NODE["node_ip_address"],
        )
        yield lambda: cluster.remove_node(other, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


def evaluate(
    plan: EvalPlan, options: argparse.Namespace, out: Path, kill: Callable[[], None] | None = None
) -> tuple[dict[str, Any], dict[Any, Sample]]:
    """What one evaluation came to on replicas of its own, and its samples."""
    found: dict[str, Any] = {}
    with (
        Graders() as graders,
        load_ray(options.model, 2, device="cpu", dtype=options.dtype) as engine,
    ):
        began = time.perf_counter()
        listen = counting(engine, kill, options.kill_after, found)
        evaluation = Evaluation(engine, plan, graders, out, quality=QUALITY, on_sample=listen)
        samples = asyncio.run(evaluation.run())
        found["seconds"] = round(time.perf_counter() - began, 1)
        found["hardware"] = hardware(engine)
        up = [True] * len(engine.replicas)
        if kill is not None:
            found.pop("killing").join()
            while all(up):  # a node's processes outlive it by a moment
                up = [asyncio.run(answers(replica)) for replica in engine.replicas]
        under_way = found.pop("under_way", [0, 0])
        found["replicas"] = [
            {"runs": replica.placed, "up_at_the_end": is_up}
            for replica, is_up in zip(engine.replicas, up, strict=True)
        ]
        lost = [n for n, is_up in zip(under_way, up, strict=True) if not is_up]
    summary = whole_summary(evaluation.config, samples, out)
    lines = [json.loads(line) for line in (out / SAMPLES).open(encoding="utf-8")]
    kept = Counter((line["task"], line["repeat"]) for line in lines)
    found |= {
        "samples": len(kept),
        "kept_twice": sum(n > 1 for n in kept.values()),
        "complete": summary["complete"],
        "score": summary["score"],
        "errors": summary["errors"],
        "retried_samples": summary["retried"],
        "runs_lost": sum(lost),
        "runs_begun_again": sum(r["runs"] for r in found["replicas"]) - len(samples),
    }
    return found, {sample.key[:2]: sample for sample in samples}


async def answers(replica: Any) -> bool:
    """Whether a replica is up."""
    try:
        return bool(await replica.ask("about"))
    except ReplicaLost:
        return False


def counting(
    engine: Any, kill: Callable[[], None] | None, after: int, found: dict[str, Any]
) -> Callable[[Sample], None]:
    """Listens to the samples, and kills the node when `after` of them are done."""
    done = 0

    def on_sample(sample: Sample) -> None:
        nonlocal done
        done += 1
        if kill is not None and done == after:
            found["under_way"] = [replica.tasks for replica in engine.replicas]
            found["killing"] = threading.Thread(target=kill)
            found["killing"].start()

    return on_sample


def differences(calm: dict[Any, Sample], killed: dict[Any, Sample]) -> list[str]:
    """The samples whose answers are not the same, or that only one of the runs has."""
    return [
        f"{task} {repeat}"
        for task, repeat in sorted(calm.keys() | killed.keys())
        if not (
            (one := calm.get((task, repeat)))
            and (other := killed.get((task, repeat)))
            and (one.answer, one.value, one.error) == (other.answer, other.value, other.error)
        )
    ]


def show(calm: dict[str, Any], killed: dict[str, Any], different: list[str]) -> Table:
    """Both runs beside each other."""
    table = Table("", "undisturbed", "a node killed", title="An evaluation on two nodes")
    for name in ("samples", "kept_twice", "errors", "score", "seconds"):
        table.add_row(name.replace("_", " "), str(calm[name]), str(killed[name]))
    for name in ("runs_lost", "runs_begun_again"):
        table.add_row(name.replace("_", " "), str(calm[name]), str(killed[name]))
    placed = [[str(r["runs"]) for r in run["replicas"]] for run in (calm, killed)]
    table.add_row("runs on each replica", *(" + ".join(runs) for runs in placed))
    table.add_row("other answers", "", ", ".join(different) or "none")
    return table


def main() -> int:
    """Evaluate twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype")
    parser.add_argument("--reuse", default="exact")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--kill-after", type=int, default=16, help="samples done by then")
    parser.add_argument("--concurrent", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    suite, tasks = load_suite("math-mini", None)
    repeats = -(-options.samples // len(tasks))
    plan = EvalPlan(
        suite,
        tasks[: options.samples // repeats],
        adjusted(fully_connected(solver(), critic(), judge()), options.max_tokens, None, None),
        [options.reuse],
        repeats=repeats,
        concurrent=options.concurrent,
        traces=0.0,
    )
    with tempfile.TemporaryDirectory() as folder, two_nodes() as kill:
        calm, calm_samples = evaluate(plan, options, Path(folder) / "calm")
        killed, killed_samples = evaluate(plan, options, Path(folder) / "killed", kill)
    different = differences(calm_samples, killed_samples)
    value = {
        "command": "python " + " ".join(sys.argv),
        "hardware": calm.pop("hardware"),
        "versions": {
            "kvcomm": __version__,
            "ray": ray.__version__,
            "python": platform.python_version(),
        },
        "model": options.model,
        "reuse": options.reuse,
        "tasks": len(plan.tasks),
        "repeats": plan.repeats,
        "concurrent": plan.concurrent,
        "max_tokens": options.max_tokens,
        "killed_after": options.kill_after,
        "undisturbed": calm,
        "killed": {name: v for name, v in killed.items() if name != "hardware"},
        "same_score": calm["score"] == killed["score"],
        "other_answers": different,
    }
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    Console(stderr=True).print(show(calm, killed, different))
    print(text)
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
