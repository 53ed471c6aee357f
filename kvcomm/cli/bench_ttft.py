"""`kvcomm bench ttft`: time to first token in every mode, beside plain transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.loading import reusing
from kvcomm.cli.output import complain, console, number_table, print_json
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from kvcomm.runtime.speed import Mode

LEGEND = (
    "TTFT: from the last producer's final token to the agent's first. computed: prompt tokens of "
    "all agents. base: tokens of standalone base KV beside them. ahead: time in forwards before "
    "the last input was there. as dense: calls with the same text (or, of answers that are given, "
    "the same first token)."
)
# The paper's model and lengths.
PAPER = {"model": "random:llama-3.1-8b", "dtype": "bfloat16", "device": "cuda"}


def ttft(
    graph: Annotated[
        str, typer.Option("--graph", "-g", metavar="G", help="full or debate.")
    ] = "full",
    agents: Annotated[
        int, typer.Option("--agents", "-n", max=options.MOST_AGENTS, metavar="N")
    ] = 5,
    prefix: Annotated[
        int, typer.Option(max=options.MOST_TOKENS, metavar="N", help="Tokens of each role text.")
    ] = 512,
    input_: Annotated[
        int,
        typer.Option("--input", max=options.MOST_TOKENS, metavar="N", help="Tokens of the task."),
    ] = 1024,
    output: Annotated[
        int, typer.Option(max=options.MOST_TOKENS, metavar="N", help="Tokens of each answer.")
    ] = 512,
    samples: Annotated[
        int, typer.Option(max=options.MOST_TIMES, metavar="N", help="Passes of each mode.")
    ] = 1,
    modes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these modes.", show_default="all")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode answers instead of computing given ones.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(metavar="paper", help="The paper's model on CUDA.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the times, too: FILE.png, .pdf, .svg.", show_default=False
        ),
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Measure the time to first token of each agent, in every mode on the same workload."""
    from kvcomm.runtime.speed import MODES, Ttft
    from kvcomm.runtime.workload import Workload

    if preset not in (None, "paper"):
        raise UsageError(f"--preset {preset!r} is unknown: there is `paper`")
    if preset:
        model, device, dtype = PAPER["model"], device or PAPER["device"], dtype or PAPER["dtype"]
    if graph not in ("full", "debate"):
        raise UsageError(f"--graph {graph!r}: the workload is full or debate")
    if min(agents, prefix, input_, samples) < 1 or output < 2:
        raise UsageError("--agents, --prefix, --input and --samples need 1 at least, --output 2")
    names = list(MODES) if modes is None else [name.strip() for name in modes.split(",")]
    for name in names:
        if name not in MODES:
            raise UsageError(f"mode {name!r} is unknown: choose among {', '.join(MODES)}")
    if plot is not None:
        options.check_plot(plot)
    work = Workload(agents, prefix, input_, output, graph=graph, seed=seed)  # type: ignore[arg-type]

    from kvcomm.engine.memory import peak_memory
    from kvcomm.engine.models import hardware

    with reusing(model, device, dtype) as engine, engine.plain() as plain:
        bench = Ttft(
            engine,
            plain,
            work,
            forget=engine.forget,
            modes=names,
            decode=decode,
            on_pass=_told,
        )
        measured = asyncio.run(bench.run(samples))
        where, peak = hardware(engine), peak_memory(engine.network.device)
    modes_found = _by_mode(measured)
    value = {
        "model": model,
        "hardware": where,
        "peak_bytes": peak,
        "workload": vars(work) | {"decode": decode},
        "modes": modes_found,
    }
    if plot is not None:
        from kvcomm.cli.plot import plot_ttft

        plot_ttft(value, plot)
        complain(f"drawn: {plot}")
    if json:
        print_json(value)
        return
    console().print(_table(modes_found))
    console().print(f"\n{LEGEND}\n{where}")


def _by_mode(measured: list[Mode]) -> dict[str, dict[str, Any]]:
    dense = next((mode for mode in measured if mode.name == "dense"), None)
    return {mode.name: mode.to_json(dense) for mode in measured}


def _told(mode: str, sample: int, took_s: float) -> None:
    what = f"sample {sample + 1}" if sample >= 0 else f"warm-up {-sample}"
    complain(f"{mode}, {what}: {took_s:.1f} s")


def _table(found: dict[str, dict[str, Any]]) -> Table:
    columns = ("TTFT last", "ratio", "end to end", "computed", "base", "ahead", "as dense")
    table = number_table("mode", *columns)
    reference = found.get("dense")
    for name, value in found.items():
        last, agents = value["agents"][-1], value["agents"]
        ratio = reference["agents"][-1]["ttft_s"] / last["ttft_s"] if reference else None
        prompt = sum(agent["prompt_tokens"] for agent in agents)
        table.add_row(
            name,
            f"{last['ttft_s']:.2f} s",
            f"{ratio:.1f}×" if ratio else "",
            f"{value['end_to_end_s']:.1f} s",
            f"{sum(agent['computed_tokens'] for agent in agents) / prompt:.0%}",
            f"{sum(agent['base_tokens'] for agent in agents):,}",
            f"{sum(agent['ahead_s'] for agent in agents):.1f} s",
            "" if value["as_dense"] is None else f"{value['as_dense']:.0%}",
        )
    return table
