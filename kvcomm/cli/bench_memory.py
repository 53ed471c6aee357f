"""`kvcomm bench memory`: the most memory that the speed workload takes, mode by mode."""

from __future__ import annotations

import json as json_
import subprocess
import sys
from typing import Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.output import complain, console, number_table, print_json
from kvcomm.errors import KvcommError, UsageError

RUN = "import sys; from kvcomm.cli import main; main(sys.argv[1:])"


def memory(
    agents: Annotated[
        int, typer.Option("--agents", "-n", min=1, max=options.MOST_AGENTS, metavar="N")
    ] = 5,
    prefix: Annotated[
        int,
        typer.Option(min=1, max=options.MOST_TOKENS, metavar="N", help="Tokens of each role text."),
    ] = 512,
    input_: Annotated[
        int,
        typer.Option(
            "--input", min=1, max=options.MOST_TOKENS, metavar="N", help="Tokens of the task."
        ),
    ] = 1024,
    output: Annotated[
        int,
        typer.Option(min=2, max=options.MOST_TOKENS, metavar="N", help="Tokens of each answer."),
    ] = 512,
    modes: Annotated[
        str, typer.Option(metavar="A,B", help="Modes of `bench ttft`.")
    ] = "generate,dense,exact,kvcomm,auto",
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Run the workload of `bench ttft` once in each mode, each in a process of its own."""
    sizes = {"--agents": agents, "--prefix": prefix, "--input": input_, "--output": output}
    base = ["bench", "ttft", "--model", model, "--json"]
    base += [part for name, value in sizes.items() for part in (name, str(value))]
    for name, text in (("--device", device), ("--dtype", dtype)):
        base += [name, text] if text else []
    peaks: dict[str, int] = {}
    hardware = ""
    for mode in modes.split(","):
        complain(f"running the workload in the mode {mode}")
        value = _run([*base, "--modes", mode.strip()])
        peaks[mode.strip()], hardware = value["peak_bytes"], value["hardware"]
    found = {"model": model, "hardware": hardware, "peak_bytes": peaks}
    if json:
        print_json(found)
        return
    table = number_table("mode", "peak")
    for mode, peak in peaks.items():
        table.add_row(mode, f"{peak / 1e6:,.0f} MB")
    console().print(table)
    console().print(f"\nmodel, rows, caches, Python: the most that was resident. {hardware}")


def _run(argv: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", RUN, *argv], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        kind = UsageError if done.returncode == 2 else KvcommError
        raise kind(last.removeprefix("error: "))
    value: dict[str, Any] = json_.loads(done.stdout)
    return value
