"""`kvcomm bench fidelity`: how far every reuse method is from dense, on real questions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.bench_memory import memory
from kvcomm.cli.bench_throughput import throughput
from kvcomm.cli.bench_ttft import ttft
from kvcomm.cli.loading import reusing
from kvcomm.cli.output import complain, console, number_table, print_json
from kvcomm.cli.progress import Counted
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from kvcomm.runtime.fidelity import Method

app = typer.Typer(
    no_args_is_help=True, help="Benchmark speed, memory and accuracy against other methods."
)
app.command("ttft")(ttft)
app.command("throughput")(throughput)
app.command("memory")(memory)


@app.command("fidelity")
def fidelity(
    suite: Annotated[
        str, typer.Option("--suite", "-s", metavar="S", help="gsm8k or hotpotqa.")
    ] = "gsm8k",
    graph: options.Graph = "chain",
    agents: options.Agents = None,
    rounds: options.Rounds = None,
    warmup: Annotated[
        int,
        typer.Option(max=options.MOST_TIMES, metavar="N", help="Calls that teach, not measured."),
    ] = 20,
    held_out: Annotated[
        int, typer.Option(max=options.MOST_TIMES, metavar="N", help="Calls that are measured.")
    ] = 40,
    data: options.Data = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these methods.", show_default="all"),
    ] = None,
    target: options.Target = None,
    audit_rate: options.AuditRate = None,
    budget: options.RepairBudget = None,
    model: options.Model = options.DEFAULT_MODEL,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", max=options.MOST_TOKENS, metavar="N", help="Longest message, in tokens."
        ),
    ] = 64,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Compare every reuse method with dense, on the same calls of a graph."""
    from kvcomm.cli.topologies import build_graph, with_passages
    from kvcomm.tasks import load_suite

    if warmup < 0 or held_out < 1:
        raise UsageError("--warmup must be at least 0 and --held-out at least 1")
    rows, tasks = load_suite(suite, data)
    built = build_graph(graph, agents=agents, rounds=rounds, max_tokens=max_tokens, temperature=0.0)
    built = with_passages(built, rows.inputs)
    quality = options.quality(target, audit_rate, budget)

    from kvcomm.reuse.auto import Auto
    from kvcomm.runtime.fidelity import Fidelity, policies

    wanted = _wanted(methods, [*policies(), "auto"])
    with reusing(model, device, dtype) as engine, Bar(warmup + held_out) as bar:
        bench = Fidelity(
            engine,
            built,
            warmup=warmup,
            held_out=held_out,
            passages=frozenset(rows.inputs),
            methods={name: policy for name, policy in policies().items() if name in wanted},
            auto=Auto(*quality.values()) if "auto" in wanted else None,
            on_call=bar.advance,
        )
        measured = asyncio.run(bench.run([task.inputs for task in tasks]))
    if json:
        print_json(
            {
                "model": model,
                "suite": suite,
                "graph": graph,
                "calls": held_out,
                "methods": {method.name: method.to_json() for method in measured},
            }
        )
    else:
        console().print(_table(measured))
        for method in measured:
            if method.name == "auto":
                console().print(f"\n{_auto(method.to_json())}")
        console().print(f"\n{LEGEND}")


LEGEND = (
    "mean KL(dense ‖ method) in nats over 24 tokens of dense's greedy answer, and at its first "
    "token; top-1: tokens on which both agree; same text: answers with the same first 32 tokens; "
    "computed: share of the prompts' token-layers."
)


def _wanted(methods: str | None, known: list[str]) -> list[str]:
    if methods is None:
        return known
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"method {name!r} is unknown: choose among {', '.join(known)}")
    return names


def _table(measured: list[Method]) -> Table:
    columns = ("median", "mean", "first", "top-1", "same text", "computed", "state")
    table = number_table("method", *columns)
    for method in measured:
        found: dict[str, Any] = method.to_json()
        table.add_row(
            method.name,
            f"{found['divergence']['median']:.4f}",
            f"{found['divergence']['mean']:.4f}",
            f"{found['first_divergence']['mean']:.4f}",
            f"{found['top1_agreement']:.3f}",
            f"{found['same_text_32']:.0%}",
            f"{found['computed_fraction']:.1%}",
            f"{found['state_bytes'] / 1e6:,.0f} MB",
        )
    return table


def _auto(found: dict[str, Any]) -> str:
    """What `auto` chose on the held-out calls, and what its audits came to over all calls."""
    choices = ", ".join(f"{name} {count}" for name, count in found["choices"].items())
    audits = found["audits"]
    mean = "none" if audits["mean"] is None else f"{audits['used']}, mean {audits['mean']:.4f}"
    return f"auto chose {choices}; audits of realigned calls: {mean}; probes: {audits['probes']}"


class Bar(Counted):
    """Progress on stderr: a bar in a terminal, a line every tenth call elsewhere."""

    def __init__(self, total: int) -> None:
        super().__init__("calls", total)

    def advance(self, done: int, of: int) -> None:
        """`done` calls of `of` were looked at."""
        if self._bar:
            self._bar.update(self._task, completed=done)
        elif done % 10 == 0 or done == of:
            complain(f"{done} of {of} calls")
