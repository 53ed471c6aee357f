"""`kvcomm plan`: what the graph of a trace would take on other hardware, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.output import console, number_table, print_json
from kvcomm.extras import need

if TYPE_CHECKING:
    from rich.table import Table

# Of replicas and graphs: what is simulated in minutes.
MOST = 100_000


def plan(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, its name, or a trace.jsonl.")
    ],
    hardware: Annotated[
        str,
        typer.Option(metavar="H", help="A .toml or .json file, or a GPU: h200, h100, a100, l4, …"),
    ],
    replicas: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, metavar="N", help="Copies of the model, a graph on one of them."
        ),
    ] = 1,
    concurrent: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="M", help="Graphs in flight, over all replicas.")
    ] = 1,
    graphs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Graphs in all.",
            show_default="4 times --concurrent",
        ),
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Only these modes.", show_default="all that the trace allows"
        ),
    ] = None,
    kv_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 40,
            metavar="N",
            help="Bytes of a token's KV.",
            show_default="the file's",
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(metavar="8B", help="The model's size.", show_default="from its name"),
    ] = None,
    memory: options.Memory = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where run folders are.")
    ] = options.RUNS,
    json: options.Json = False,
) -> None:
    """Estimate time to first token, throughput and memory of a run's graph, by simulation."""
    need("simpy", "plan")
    from kvcomm.plan.gpus import hardware_named
    from kvcomm.plan.provenance import notes
    from kvcomm.plan.simulate import Fleet, estimate
    from kvcomm.plan.workload import modes_of, read_work
    from kvcomm.trace.read import find_run, read_trace

    limit = options.size(memory)
    trace = read_trace(find_run(run, runs))
    described = hardware_named(
        hardware, trace.started.model, kv_bytes=kv_bytes, parameters=parameters
    )
    work = read_work(trace)
    names = modes_of(work, modes)
    fleet = Fleet(described, replicas, concurrent, graphs or 4 * concurrent, limit)
    found = {name: estimate(work, name, fleet).to_json() for name in names}
    said = notes(work, names, fleet, trace.started.model)
    value = {
        "trace": str(trace.path.parent),
        "graph": trace.started.graph,
        "model": trace.started.model,
        "hardware": described.model_dump(mode="json"),
        "replicas": replicas,
        "concurrent": concurrent,
        "graphs": fleet.graphs,
        "kv_memory": described.kv_memory if limit is None else limit,
        "modes": found,
        "notes": said,
    }
    if json:
        print_json(value)
        return
    out = console()
    out.print(_heading(value))
    out.print(_table(found))
    out.print(f"\n{LEGEND}")
    for line in said:
        out.print(f" - {line}")


LEGEND = (
    "TTFT: of the last agent, from its last input to its first token. graph: from question to "
    "answer. KV: the most a replica holds. busy: share of the time in forwards."
)


def _heading(value: dict[str, Any]) -> str:
    from kvcomm.trace.text import plural

    described = value["hardware"]
    return (
        f"{value['graph']}, {value['model']}: {plural(value['graphs'], 'graph')}, "
        f"{value['concurrent']} in flight\n"
        f"on {plural(value['replicas'], 'replica')} of {described['name']} "
        f"({described['source']})\n"
    )


def _table(found: dict[str, dict[str, Any]]) -> Table:
    from kvcomm.trace.text import number

    columns = ("TTFT s", "p95", "graph s", "p95", "graphs/s", "tokens/s", "KV", "busy")
    table = number_table("mode", *columns)
    for name, value in found.items():
        first, whole = value["ttft_s"], value["end_to_end_s"]
        table.add_row(
            name,
            *(number(times[at]) for times in (first, whole) for at in ("median", "p95")),
            f"{value['graphs_per_s']:.3g}",
            f"{value['tokens_per_s']:,.3g}"
            if value["tokens_per_s"] < 1000
            else f"{value['tokens_per_s']:,.0f}",
            _bytes(value["peak_kv_bytes"]),
            f"{value['utilisation']:.0%}",
        )
    return table


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
