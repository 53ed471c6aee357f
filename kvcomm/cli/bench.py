"""`kvcomm bench`: speed, memory and accuracy of every mode, on the same workload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.bench import Findings, chosen
from kvcomm.cli import options
from kvcomm.cli.options import option
from kvcomm.cli.output import complain, console, print_json, print_table
from kvcomm.cli.progress import Counted
from kvcomm.errors import ReuseRefused, UsageError

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine

app = typer.Typer(
    no_args_is_help=True, help="Benchmark speed, memory and accuracy against other methods."
)
# The paper's model and lengths.
PAPER = {"model": "random:llama-3.1-8b", "dtype": "bfloat16", "device": "cuda"}


TOKENS, TIMES = options.MOST_TOKENS, options.MOST_TIMES
Agents = Annotated[int, option("N", "Agents.", "--agents", "-n", max=options.MOST_AGENTS)]
Prefix = Annotated[int, option("N", "Tokens of each role text.", max=TOKENS)]
Input = Annotated[int, option("N", "Tokens of the task.", "--input", max=TOKENS)]
Output = Annotated[int, option("N", "Tokens of each answer.", max=TOKENS)]


@app.command()
@options.grouped
def ttft(
    *,
    graph: Annotated[str, option("G", "full or debate.", "--graph", "-g")] = "full",
    agents: Agents = 5,
    prefix: Prefix = 512,
    input_: Input = 1024,
    output: Output = 512,
    samples: Annotated[int, option("N", "Passes of each mode.", max=TIMES)] = 1,
    modes: Annotated[str | None, option("A,B", "Only these modes.", shown="all")] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode answers instead of computing given ones.")
    ] = False,
    preset: Annotated[str | None, option("paper", "The paper's model on CUDA.")] = None,
    plot: Annotated[
        Path | None, option("FILE", "Draw the times, too: FILE.png, .pdf, .svg.")
    ] = None,
    model: options.ModelOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure the time to first token of each agent, in every mode on the same workload."""
    if preset not in (None, "paper"):
        raise UsageError(f"--preset {preset!r} is unknown: there is `paper`")
    if preset:
        given = {name: value for name, value in vars(model).items() if value and name != "model"}
        model = options.ModelOptions(**PAPER | given)
    if graph not in ("full", "debate"):
        raise UsageError(f"--graph {graph!r}: the workload is full or debate")
    _check_sizes(agents, prefix, input_, samples, output=output)
    if plot is not None:
        options.check_plot(plot)

    from kvcomm.bench.ttft import MODES, Ttft
    from kvcomm.bench.workload import Workload

    names = chosen("mode", modes, MODES)
    work = Workload(agents, prefix, input_, output, graph=graph, seed=seed)  # type: ignore[arg-type]

    async def bench(engine: LocalEngine) -> Findings:
        bench = Ttft(engine, work, modes=names, decode=decode, on_step=complain)
        await bench.run(samples)
        return bench.report()

    report = _measure(bench, model)
    if plot is not None:
        from kvcomm.cli.plot import plot_ttft

        plot_ttft(report.value, plot)
        complain(f"drawn: {plot}")
    _show(report, json)


@app.command("throughput")
@options.grouped
def throughput_(
    *,
    rows: Annotated[str, option("N,N", "Rows that decode together.")] = "1,2,4,8",
    graphs: Annotated[str, option("N,N", "Graphs in flight.")] = "1,2,4",
    prompt: Annotated[int, option("N", "Tokens of each row's prompt.", max=TOKENS)] = 512,
    tokens: Output = 32,
    samples: Annotated[int, option("N", "The best of N counts.", max=TIMES)] = 3,
    model: options.ModelOptions,
    json: options.Json = False,
) -> None:
    """Measure tokens a second by rows, beside transformers' generate, and graphs a second."""
    counts, flights = _counts("--rows", rows), _counts("--graphs", graphs)
    if min(prompt, samples) < 1 or tokens < 2:
        raise UsageError("--prompt and --samples need 1 at least, --tokens 2")

    from kvcomm.bench.throughput import throughput

    async def bench(engine: LocalEngine) -> Findings:
        sizes = {"prompt": prompt, "tokens": tokens, "samples": samples}
        return await throughput(engine, counts, flights, on_step=complain, **sizes)

    _show(_measure(bench, model), json)


@app.command()
@options.grouped
def memory(
    *,
    agents: Agents = 5,
    prefix: Prefix = 512,
    input_: Input = 1024,
    output: Output = 512,
    modes: Annotated[
        str, option("A,B", "Modes of `bench ttft`.")
    ] = "generate,dense,exact,kvcomm,auto",
    model: options.ModelOptions,
    json: options.Json = False,
) -> None:
    """Run the workload of `bench ttft` once in each mode, each in a process of its own."""
    from kvcomm.bench.memory import peaks

    _check_sizes(agents, prefix, input_, output=output)
    sizes = {"--agents": agents, "--prefix": prefix, "--input": input_, "--output": output}
    given = {**sizes, **{f"--{name}": value for name, value in vars(model).items()}}
    argv = [str(part) for name, value in given.items() if value for part in (name, value)]
    _show(peaks(argv, [mode.strip() for mode in modes.split(",")], complain), json)


@app.command()
@options.grouped
def fidelity(
    *,
    suite: Annotated[str, option("S", "gsm8k or hotpotqa.", "--suite", "-s")] = "gsm8k",
    graph: options.Graph = "chain",
    agents: options.Agents = None,
    rounds: options.Rounds = None,
    warmup: Annotated[int, option("N", "Calls that teach, not measured.", max=TIMES)] = 20,
    held_out: Annotated[int, option("N", "Calls that are measured.", max=TIMES)] = 40,
    data: options.Data = None,
    methods: Annotated[str | None, option("A,B", "Only these methods.", shown="all")] = None,
    auto: options.AutoOptions,
    max_tokens: Annotated[int, option("N", "Longest message, in tokens.", max=TOKENS)] = 64,
    model: options.ModelOptions,
    json: options.Json = False,
) -> None:
    """Compare every reuse method with dense, on the same calls of a graph."""
    from kvcomm.cli.topologies import build_graph, with_passages
    from kvcomm.tasks import load_suite

    if warmup < 0 or held_out < 1:
        raise UsageError("--warmup must be at least 0 and --held-out at least 1")
    rows, tasks = load_suite(suite, data)
    built = build_graph(graph, agents=agents, rounds=rounds, max_tokens=max_tokens, temperature=0.0)
    quality = options.quality(**vars(auto))

    from kvcomm.bench.fidelity import Fidelity, policies
    from kvcomm.reuse.auto import Auto

    wanted = chosen("method", methods, [*policies(), "auto"])

    async def bench(engine: LocalEngine) -> Findings:
        with Counted("calls", warmup + held_out) as progress:

            def on_call(done: int, of: int) -> None:
                line = f"{done} of {of} calls" if done % 10 == 0 or done == of else ""
                progress.show("calls", done, line)

            bench = Fidelity(
                engine,
                with_passages(built, rows.inputs),
                warmup=warmup,
                held_out=held_out,
                passages=frozenset(rows.inputs),
                methods={name: policy for name, policy in policies().items() if name in wanted},
                auto=Auto(*quality.values()) if "auto" in wanted else None,
                on_call=on_call,
            )
            await bench.run([task.inputs for task in tasks])
        return bench.report(suite, graph)

    _show(_measure(bench, model), json)


def _measure(
    bench: Callable[[LocalEngine], Coroutine[Any, Any, Findings]], model: options.ModelOptions
) -> Findings:
    """Run a benchmark on a model, and name the hardware. Raises `ReuseRefused` for one that runs
    dense.
    """
    from kvcomm.engine.load import load_engine
    from kvcomm.engine.local import LocalEngine
    from kvcomm.engine.models import hardware

    name = model.model
    complain(f"loading {name}")
    with load_engine(name, device=model.device, dtype=model.dtype) as engine:
        if not isinstance(engine, LocalEngine):
            raise ReuseRefused(f"{name} cannot reuse KV: {engine.capabilities.reason}")
        found, where = asyncio.run(bench(engine)), hardware(engine)
    value = {"model": name, "hardware": where, **found.value}
    return replace(found, value=value, notes=(*found.notes, where))


def _show(report: Findings, json: bool) -> None:
    if json:
        print_json(report.value)
        return
    first, *columns = report.columns
    print_table((first, *(f">{name}" for name in columns)), report.rows)
    for note in report.notes:
        console().print(f"\n{note}")


def _check_sizes(*sizes: int, output: int) -> None:
    if min(sizes) < 1 or output < 2:
        raise UsageError("--agents, --prefix, --input and --samples need 1 at least, --output 2")


def _counts(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > options.MOST_AGENTS:
        raise UsageError(f"{option} {text!r}: write numbers such as 1,2,4")
    return numbers
