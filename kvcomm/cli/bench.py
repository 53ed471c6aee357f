"""`kvcomm bench`: speed, memory and accuracy of every mode, on the same workload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from kvcomm.bench import Findings, chosen
from kvcomm.cli import options
from kvcomm.cli.options import Option, numbers
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
# Bytes of a KV cache that lasts as long as a benchmark.
MOST = 64 << 30
# Texts of the workload, and how often it is worked through.
WORK = {
    "agents": Option("N", "Agents.", "-n", within=options.AGENTS),
    "prefix": Option("N", "Tokens of each role text.", within=options.TOKENS),
    "input_": Option("N", "Tokens of the task.", within=options.TOKENS),
    "output": Option("N", "Tokens of each answer.", within=(2, options.TOKENS[1])),
}


@app.command()
@options.takes(
    **WORK,
    graph=Option("G", "full or debate.", "-g"),
    samples=Option("N", "Passes of each mode.", within=options.TIMES),
    modes=Option("A,B", "Only these modes.", shown="all"),
    decode="Decode answers instead of computing given ones.",
    preset=Option("paper", "The paper's model on CUDA."),
    plot=Option("FILE", "Draw the times, too: FILE.png, .pdf, .svg."),
)
def ttft(
    *,
    graph: str = "full",
    agents: int = 5,
    prefix: int = 512,
    input_: int = 1024,
    output: int = 512,
    samples: int = 1,
    modes: str | None = None,
    decode: bool = False,
    preset: str | None = None,
    plot: Path | None = None,
    model: options.ModelOptions,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure the time to first token of each agent, in every mode on the same workload."""
    if preset not in (None, "paper"):
        raise UsageError(f"--preset {preset!r} is unknown: there is `paper`")
    if preset:
        given = {name: value for name, value in vars(model).items() if value and name != "model"}
        model = options.ModelOptions(**PAPER | given)
    if graph not in ("full", "debate"):
        raise UsageError(f"--graph {graph!r}: the workload is full or debate")
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
@options.takes(
    rows=Option("N,N", "Rows that decode together."),
    graphs=Option("N,N", "Graphs in flight."),
    prompt=Option("N", "Tokens of each row's prompt.", within=options.TOKENS),
    tokens=WORK["output"],
    samples=Option("N", "The best of N counts.", within=options.TIMES),
)
def throughput_(
    *,
    rows: str = "1,2,4,8",
    graphs: str = "1,2,4",
    prompt: int = 512,
    tokens: int = 32,
    samples: int = 3,
    model: options.ModelOptions,
    json: bool = False,
) -> None:
    """Measure tokens a second by rows, beside transformers' generate, and graphs a second."""
    counts, flights = numbers("--rows", rows), numbers("--graphs", graphs)

    from kvcomm.bench.throughput import throughput

    async def bench(engine: LocalEngine) -> Findings:
        sizes = {"prompt": prompt, "tokens": tokens, "samples": samples}
        return await throughput(engine, counts, flights, on_step=complain, **sizes)

    _show(_measure(bench, model), json)


@app.command()
@options.takes(**WORK, modes=Option("A,B", "Modes of `bench ttft`."))
def memory(
    *,
    agents: int = 5,
    prefix: int = 512,
    input_: int = 1024,
    output: int = 512,
    modes: str = "generate,dense,exact,kvcomm,auto",
    model: options.ModelOptions,
    json: bool = False,
) -> None:
    """Run the workload of `bench ttft` once in each mode, each in a process of its own."""
    from kvcomm.bench.memory import peaks

    sizes = {"--agents": agents, "--prefix": prefix, "--input": input_, "--output": output}
    given = {**sizes, **{f"--{name}": value for name, value in vars(model).items()}}
    argv = [str(part) for name, value in given.items() if value for part in (name, value)]
    _show(peaks(argv, [mode.strip() for mode in modes.split(",")], complain), json)


@app.command()
@options.takes(
    suite=Option("S", "gsm8k or hotpotqa.", "-s"),
    warmup=Option("N", "Calls that teach, not measured.", within=(0, options.TIMES[1])),
    held_out=Option("N", "Calls that are measured.", within=options.TIMES),
    methods=Option("A,B", "Only these methods.", shown="all"),
    max_tokens=Option("N", "Longest message, in tokens.", within=options.TOKENS),
)
def fidelity(
    *,
    suite: str = "gsm8k",
    graph: str = "chain",
    agents: int | None = None,
    rounds: int | None = None,
    warmup: int = 20,
    held_out: int = 40,
    data: Path | None = None,
    methods: str | None = None,
    auto: options.AutoOptions,
    max_tokens: int = 64,
    model: options.ModelOptions,
    json: bool = False,
) -> None:
    """Compare every reuse method with dense, on the same calls of a graph."""
    from kvcomm.cli.topologies import build_graph, with_passages
    from kvcomm.tasks import load_suite

    rows, tasks = load_suite(suite, data)
    built = build_graph(graph, agents=agents, rounds=rounds, max_tokens=max_tokens, temperature=0.0)
    quality = auto.quality()

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


@app.command()
@options.takes(
    suite=Option("S", "hotpotqa, musique, rag-mini."),
    questions=Option("N", "Questions that are asked.", within=options.TIMES),
    skip=Option("N", "Rows that are left out before them.", within=(0, options.TIMES[1])),
    warmup=Option(
        "N", "Questions before them that auto learns from.", within=(0, options.TIMES[1])
    ),
    passages=Option("N", "Passages of a question, found by BM25.", within=(1, 20)),
    length=Option(
        "N", "Passages of so many tokens, put together of a row's.", "", "as they are", (16, 10_000)
    ),
    gold="Over the passages that hold the answer, instead of those found.",
    modes=Option("A,B", "Modes and methods.", shown="all"),
    shares=Option("P,P", "Percent of the texts that methods compute."),
    ahead=Option("W", "Who has read the corpus: others' questions, or none (see kvcomm index)."),
    kv_cache=Option("DIR", "Where the KV of texts is kept.", shown="a temporary one"),
)
def rag(
    *,
    suite: str = "hotpotqa",
    data: Path | None = None,
    questions: int = 20,
    skip: int = 0,
    warmup: int = 0,
    passages: int = 4,
    length: int | None = None,
    gold: bool = False,
    modes: str | None = None,
    shares: str = "20,30",
    ahead: str = "questions",
    auto: options.AutoOptions,
    model: options.ModelOptions,
    memory: str | None = None,
    kv_cache: Path | None = None,
    kv_cache_size: str | None = None,
    json: bool = False,
) -> None:
    """Measure reuse of passages across questions: divergence, answers, tokens, times."""
    from kvcomm.bench.rag import MODES, Asked, Rag, methods
    from kvcomm.engine.kv_cache import SIZE, KVCache
    from kvcomm.reuse.auto import Auto
    from kvcomm.tasks import load_suite
    from kvcomm.tasks.corpus import by_others, over_corpus, over_gold
    from kvcomm.tasks.scoring import score_qa
    from kvcomm.tasks.teams import reader

    parts = [n / 100 for n in numbers("--shares", shares)]
    names = chosen("mode", modes, [*MODES, *methods(parts)])
    if ahead not in ("questions", "none"):
        raise UsageError(f"--ahead {ahead!r}: write questions or none")
    quality = auto.quality()
    _, tasks = load_suite(suite, data)
    wanted = [task for task in tasks[skip:] if task.corpus][: warmup + questions]
    if len(wanted) < warmup + questions:
        raise UsageError(f"{suite} has {len(wanted)} questions behind --skip {skip}: ask fewer")
    first = {task.input for task in wanted[:warmup]}
    by_question = {task.input: task for task in wanted}

    async def bench(engine: LocalEngine) -> Findings:
        def cut(text: str) -> list[str]:
            assert length is not None
            ids = engine.codec.encode(text)
            starts = range(0, max(len(ids) - length // 2, 1), length)
            return [engine.codec.decode(ids[start : start + length]) for start in starts]

        count = 2 if gold else passages
        over, corpus = (
            over_gold(wanted, count)
            if gold
            else over_corpus(wanted, count, cut if length else None)
        )
        before = by_others(over, corpus, count) if ahead == "questions" else []

        def asked(question: str, texts: tuple[str, ...]) -> Asked:
            task = by_question.get(question)
            accepted = (task.target, *task.accepted) if task else ()
            return Asked(question, texts, lambda said: score_qa(said, accepted).metrics["f1"])

        with Counted("prompts", len(before) + len(over)) as progress:

            def on_step(what: str, done: int, of: int) -> None:
                place = {"prompts read ahead": 0, "questions": len(before) + warmup}
                number = done + place.get(what, len(before))
                line = f"{done} of {of} {what}" if done % 10 == 0 or done == of else ""
                progress.show(what, number, line)

            found = Rag(
                engine,
                reader(count=count),
                count,
                Auto(*quality.values()),
                names,
                parts,
                on_step=on_step,
            )
            learned = [asked(*one) for one in over if one[0] in first]
            counted = [asked(*one) for one in over if one[0] not in first]
            await found.run([asked(*one) for one in before], counted, learned)
        return found.report(suite)

    # What the corpus leaves has to be there when it is asked for, however little memory there is.
    with TemporaryDirectory(prefix="kvcomm-rag-") as folder:
        most = options.size(kv_cache_size, "--kv-cache-size") or (SIZE if kv_cache else MOST)
        kept = KVCache(kv_cache or Path(folder), most)
        found = _measure(bench, model, memory=options.size(memory), kv_cache=kept)
    _show(found, json)


def _measure(
    bench: Callable[[LocalEngine], Coroutine[Any, Any, Findings]],
    model: options.ModelOptions,
    **more: Any,
) -> Findings:
    """Run a benchmark on a model, and name the hardware. Raises `ReuseRefused` for one that runs
    dense.
    """
    from kvcomm.engine.load import load_engine
    from kvcomm.engine.local import LocalEngine
    from kvcomm.engine.models import hardware

    name = model.model
    complain(f"loading {name}")
    with load_engine(name, device=model.device, dtype=model.dtype, **more) as engine:
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
