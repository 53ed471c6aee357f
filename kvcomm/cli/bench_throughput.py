"""`kvcomm bench throughput`: rows that decode together, graphs in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.loading import reusing
from kvcomm.cli.output import complain, console, number_table, print_json
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from kvcomm.runtime.throughput import Throughput


def throughput(
    rows: Annotated[
        str, typer.Option(metavar="N,N", help="Rows that decode together.")
    ] = "1,2,4,8",
    graphs: Annotated[str, typer.Option(metavar="N,N", help="Graphs in flight.")] = "1,2,4",
    prompt: Annotated[
        int, typer.Option(max=options.MOST_TOKENS, metavar="N", help="Tokens of each row's prompt.")
    ] = 512,
    tokens: Annotated[
        int, typer.Option(max=options.MOST_TOKENS, metavar="N", help="Tokens of each answer.")
    ] = 32,
    samples: Annotated[
        int, typer.Option(max=options.MOST_TIMES, metavar="N", help="The best of N counts.")
    ] = 3,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Measure tokens a second by rows, beside transformers' generate, and graphs a second."""
    from kvcomm.runtime.throughput import Throughput

    counts, flights = _numbers("--rows", rows), _numbers("--graphs", graphs)
    if min(prompt, samples) < 1 or tokens < 2:
        raise UsageError("--prompt and --samples need 1 at least, --tokens 2")

    from kvcomm.engine.models import hardware

    with reusing(model, device, dtype) as engine, engine.plain() as plain:
        bench = Throughput(engine, plain, prompt, tokens, samples, complain)
        asyncio.run(bench.run(counts, flights))
        where = hardware(engine)
    if json:
        print_json({"model": model, "hardware": where, **bench.to_json()})
        return
    console().print(_table(bench))
    console().print(f"\n{where}")


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > options.MOST_AGENTS:
        raise UsageError(f"{option} {text!r}: write numbers such as 1,2,4")
    return numbers


def _table(bench: Throughput) -> Table:
    table = number_table("what", "a second", "to generate", "to one")
    table.add_row("generate, one row", f"{bench.generate:.1f} tokens", "1.00×", "")
    first = min(bench.decode)
    for count, rate in sorted(bench.decode.items()):
        to_one = f"{rate / bench.decode[first]:.2f}×" if first == 1 else ""
        what = f"{count} row{'s' * (count > 1)}"
        table.add_row(what, f"{rate:.1f} tokens", f"{rate / bench.generate:.2f}×", to_one)
    first = min(bench.graphs)
    for count, rate in sorted(bench.graphs.items()):
        to_one = f"{rate / bench.graphs[first]:.2f}×" if first == 1 else ""
        what = f"{count} graph{'s' * (count > 1)} in flight"
        table.add_row(what, f"{rate:.2f} graphs", "", to_one)
    return table
