"""Memory: the most that the workload of the speed benchmarks takes, each mode in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kvcomm.bench import Findings
from kvcomm.errors import KvcommError, UsageError

RUN = "import sys; from kvcomm.cli import main; main(sys.argv[1:])"


def peaks(argv: Sequence[str], modes: Sequence[str], on_step: Callable[[str], None]) -> Findings:
    """Run `kvcomm bench ttft` with these arguments once in each mode, and raise what it raises."""
    found: dict[str, int] = {}
    for mode in modes:
        on_step(f"running the workload in the mode {mode}")
        value = run([*argv, "--modes", mode])
        found[mode] = value["peak_bytes"]
    where = value["hardware"]
    return Findings(
        {"model": value["model"], "hardware": where, "peak_bytes": found},
        ("mode", "peak"),
        [(mode, f"{peak / 1e6:,.0f} MB") for mode, peak in found.items()],
        (f"model, rows, caches, Python: the most that was resident. {where}",),
    )


def run(argv: Sequence[str]) -> dict[str, Any]:
    """The JSON object of `kvcomm bench ttft` in a process of its own."""
    command = [sys.executable, "-c", RUN, "bench", "ttft", *argv, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        kind = UsageError if done.returncode == 2 else KvcommError
        raise kind(last.removeprefix("error: "))
    value: dict[str, Any] = json.loads(done.stdout)
    return value
