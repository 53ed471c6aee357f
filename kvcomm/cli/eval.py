"""`kvcomm eval SUITE`: a suite through a graph, scored; `kvcomm eval report RUN…`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kvcomm.cli import options
from kvcomm.cli.audits import noticed
from kvcomm.cli.eval_options import OPTIONS, EffortOptions, GraphOptions, MethodOptions, TaskOptions
from kvcomm.cli.eval_table import show, to_csv, to_latex
from kvcomm.cli.home import Home
from kvcomm.cli.options import Option
from kvcomm.cli.output import complain, console, print_json, say, writing
from kvcomm.cli.progress import Counted
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.tasks import Graders
    from kvcomm.tasks.evaluate import EvalPlan, Evaluation
    from kvcomm.tasks.record import Sample


class SuiteFirst(TyperGroup):
    """`eval SUITE` is the command `suite`, whatever the suite is called; `report` is another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["report"]:
            args = ["suite", *args]
        return list(super().parse_args(ctx, args))


class SuiteCommand(TyperCommand):
    """Shows itself as it is typed: `kvcomm eval SUITE`."""

    def make_context(self, info_name: str | None, *args: Any, **kwargs: Any) -> Any:
        return super().make_context("SUITE", *args, **kwargs)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What may follow: SUITE has been said."""
        return ["[OPTIONS]"]


app = typer.Typer(cls=SuiteFirst, help="Work through a suite of tasks, and score the answers.")
FORMATS = {"csv": to_csv, "latex": to_latex}


@app.command(
    "suite",
    cls=SuiteCommand,
    epilog="Another command: kvcomm eval report RUN... puts evaluations beside each other.",
)
@options.takes(
    **OPTIONS,
    name=Option("SUITE", "See `kvcomm tasks list`; or FILE.jsonl, or FILE.py[:NAME]."),
    out=Option(
        "DIR", "Folder for the results. The same command continues there.", shown="runs/TIME-SUITE"
    ),
    unsandboxed=Option("", "Run code even where no sandbox works.", "--allow-unsandboxed"),
)
def suite(
    name: str,
    *,
    graph: GraphOptions,
    team: options.TeamOptions,
    home: Home,
    methods: MethodOptions,
    auto: options.AutoOptions,
    which: TaskOptions,
    effort: EffortOptions,
    out: Path | None = None,
    unsandboxed: bool = False,
    json: bool = False,
) -> None:
    """Work through SUITE with a graph of agents, and score the answers.

    Every sample is kept as soon as it is done. The same command with the same
    --out continues where it stopped.
    """
    from kvcomm.tasks import Graders, load_suite
    from kvcomm.tasks.evaluate import EvalPlan
    from kvcomm.tasks.record import CONFIG, write_summary

    chosen = methods.chosen()
    numbers = graph.numbers()
    quality = auto.quality()
    found, tasks = load_suite(name, which.data)
    chosen |= which.select(tasks)
    place = out or options.RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{found.name}"
    with Graders(unsandboxed) as graders, resumable(place):
        graders.ready(found.grade)
        given = {"seed": team.seed, **vars(effort), **chosen}
        plans = {
            n: EvalPlan(found, graph=graph.build(found, tasks, graders, n, team), **given)
            for n in numbers
        }
        several = len(plans) > 1
        if several and (place / CONFIG).exists():
            raise UsageError(
                f"{place} holds one evaluation, and these are several: use another --out"
            )
        values = [
            evaluate(home, plan, graders, place / f"agents-{n}" if several else place, quality)
            for n, plan in plans.items()
        ]
        value = {"runs": values} if several else values[0]
        if several:
            write_summary(place, value)
    if json:
        print_json(value)
    else:
        console().print(show(values))
        say(f"kept in {place}: kvcomm eval report {place}")


def evaluate(
    home: Home, plan: EvalPlan, graders: Graders, out: Path, quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Do what is left of a plan on an engine of its own, and sum it up."""
    from kvcomm.tasks.evaluate import Evaluation
    from kvcomm.tasks.record import write_summary
    from kvcomm.tasks.summary import whole_summary

    total = len(plan.work()) + len(plan.warming())
    with home.load() as engine, EvalProgress(total) as progress:
        evaluation = Evaluation(engine, plan, graders, out, quality=quality, on_sample=progress)
        progress.evaluation = evaluation
        samples = asyncio.run(evaluation.run())
        for warning in evaluation.warnings.values():
            complain(f"warning: {warning}")
        value = whole_summary(evaluation.config, samples, out)
        write_summary(out, value)
    return value


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say how an evaluation goes on that is stopped by a signal."""
    try:
        yield
    except KeyboardInterrupt:
        if out.exists():
            complain(f"what is done is kept: the same command with --out {out} goes on from there")
        raise


class EvalProgress(Counted):
    """Takes every sample that is done: a bar with score and reuse, or a line for every ten.

    Behind the last one it says how many audits are waited for.
    """

    evaluation: Evaluation

    def __init__(self, total: int) -> None:
        super().__init__("samples", total)
        self._total = total
        self._done = 0
        self._by_mode: dict[str, list[Sample]] = {}
        self._waiting = ExitStack()

    def __call__(self, sample: Sample) -> None:
        self._done += 1
        if not sample.warmup:
            self._by_mode.setdefault(sample.mode, []).append(sample)
        if sample.error:
            complain(f"{sample.task} ({sample.mode}): {sample.reason}: {sample.error}")
        line = "; ".join(map(_standing, self._by_mode.values())) or "warming up"
        last = self._done % 10 == 0 or self._done == self._total
        self.show(line, self._done, f"{self._done} of {self._total}: {line}" if last else "")
        if self._done == self._total:
            self._waiting.enter_context(noticed(self.evaluation))

    def __exit__(self, *_: object) -> None:
        self._waiting.close()
        super().__exit__()


def _standing(samples: list[Sample]) -> str:
    """How a mode stands: its score, and the share of prompt tokens that was not computed."""
    calls = [call for sample in samples for call in sample.calls]
    prompt = sum(call.prompt_tokens for call in calls) or 1
    reused = 1 - sum(call.computed_tokens for call in calls) / prompt
    score = sum(sample.value for sample in samples) / len(samples)
    return f"{samples[0].mode} {score:.1%}, reused {reused:.0%}"


@app.command("report")
@options.takes(
    runs=Option("RUN", "Output folders of `kvcomm eval`, or folders of several."),
    by_agent="Add a line for each agent: tokens, reuse, TTFT.",
    to=Option(
        "FORMAT", "csv (every number, one row a mode) or latex (booktabs), instead of the table."
    ),
    out=Option("FILE", "Where --to is written.", shown="stdout"),
    plot=Option("FILE", "Draw score against reuse, and TTFT by agent: FILE.png, .pdf, .svg."),
)
def report(
    runs: list[Path],
    *,
    by_agent: bool = False,
    to: str | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Put evaluations beside each other. Unfinished runs are included with their results so far."""
    from kvcomm.tasks.record import SAMPLES, evaluations, read_config, read_samples
    from kvcomm.tasks.summary import whole_summary

    if to not in (None, *FORMATS):
        raise UsageError(f"--to {to!r} is unknown: choose {' or '.join(FORMATS)}")
    if to is not None and json:
        raise UsageError("--to and --json both go to stdout: choose one")
    if out is not None and to is None:
        raise UsageError("--out belongs to --to csv or --to latex")
    options.check_plot(plot)
    values = [
        whole_summary(read_config(place), read_samples(place / SAMPLES), place)
        for run in runs
        for place in evaluations(run if run.exists() else options.RUNS / run)
    ]
    if to is not None:
        text = FORMATS[to](values)
        if out is None:
            say(text.rstrip("\n"))
        else:
            with writing(out):
                out.write_text(text, encoding="utf-8")
    elif json:
        print_json({"runs": values})
    else:
        console().print(show(values, by_agent=by_agent))
    if plot is not None:
        from kvcomm.cli.plot import plot_eval

        plot_eval(values, plot)
