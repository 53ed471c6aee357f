"""`kvcomm eval SUITE`: a suite through a graph, scored; `kvcomm eval report RUN…`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kvcomm.cli import options
from kvcomm.cli.eval_plan import anchors_of, modes_of, numbers_of, select, team_of
from kvcomm.cli.eval_progress import EvalProgress, resumable
from kvcomm.cli.eval_report import report
from kvcomm.cli.eval_table import show
from kvcomm.cli.home import Home
from kvcomm.cli.output import complain, console, print_json, say
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.tasks import Graders
    from kvcomm.tasks.evaluate import Plan


class SuiteFirst(TyperGroup):
    """`eval SUITE` is the command `suite`, whatever the suite is called; `report` is another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command before a suite or an option."""
        if args[:1] != ["report"]:
            args = ["suite", *args]
        return list(super().parse_args(ctx, args))


class SuiteCommand(TyperCommand):
    """Shows itself as it is typed: `kvcomm eval SUITE`."""

    def make_context(self, info_name: str | None, *args: Any, **kwargs: Any) -> Any:
        """A context under the name of its argument."""
        return super().make_context("SUITE", *args, **kwargs)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What may follow: SUITE has been said."""
        return ["[OPTIONS]"]


app = typer.Typer(cls=SuiteFirst, help="Work through a suite of tasks, and score the answers.")
app.command("report")(report)


@app.command(
    "suite",
    cls=SuiteCommand,
    epilog="Another command: kvcomm eval report RUN... puts evaluations beside each other.",
)
def suite(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="See `kvcomm tasks list`; or FILE.jsonl, or FILE.py[:NAME]."
        ),
    ],
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph",
            "-g",
            metavar="G",
            help="A ready-made graph, or FILE.py[:NAME].",
            show_default="the suite's own team",
        ),
    ] = None,
    agents: Annotated[
        str | None,
        typer.Option(
            "--agents",
            "-n",
            metavar="N[,N...]",
            help="Agents in a ready-made graph (full, if none is named); several numbers: one "
            "evaluation each.",
            show_default=False,
        ),
    ] = None,
    rounds: options.Rounds = None,
    model: options.TeamModel = None,
    engine: options.Engine = "local",
    base_url: options.BaseUrl = None,
    served_model: options.ServedModel = None,
    replicas: options.Replicas = None,
    reuse: Annotated[
        str,
        typer.Option(
            "--reuse",
            "-r",
            metavar="R[,R...]",
            help="auto, exact, kvcomm, dense, or a policy of your own: FILE.py[:NAME].",
        ),
    ] = "auto",
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="R[,R...]",
            help="Other modes on the same samples, to compare with.",
            show_default=False,
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(metavar="G", help="Of kvcomm: the paper's γ, 0 to 1.", show_default="0.3"),
    ] = None,
    anchors: Annotated[
        int | None,
        typer.Option(
            max=options.MOST_TIMES,
            metavar="V",
            help="Of kvcomm: most anchors of a placeholder.",
            show_default="20",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the first N tasks.", show_default="all"),
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Draw the order of the tasks.", show_default=False),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only the tasks with these ids.", show_default=False),
    ] = None,
    warmup: Annotated[
        int,
        typer.Option(
            min=0,
            max=options.MOST_TIMES,
            metavar="N",
            help="Other tasks that are done first: they teach, and do not count.",
        ),
    ] = 0,
    repeats: Annotated[
        int,
        typer.Option(
            max=options.MOST_TIMES, metavar="N", help="Times each task is done (pass@1, pass@N)."
        ),
    ] = 1,
    concurrent: Annotated[
        int,
        typer.Option(
            max=options.MOST_AGENTS,
            metavar="N",
            help="Tasks under way at once. Times can be compared at 1 only.",
        ),
    ] = 4,
    retries: Annotated[
        int,
        typer.Option(
            max=options.MOST_TIMES, metavar="N", help="Times a task that failed is tried again."
        ),
    ] = 1,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Text files to retrieve from, instead of the task's passages.",
            show_default=False,
        ),
    ] = None,
    data: options.Data = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results. The same command continues there.",
            show_default="runs/TIME-SUITE",
        ),
    ] = None,
    traces: Annotated[
        float, typer.Option(metavar="SHARE", help="Samples whose traces are kept.")
    ] = 1.0,
    target: options.Target = None,
    audit_rate: options.AuditRate = None,
    budget: options.RepairBudget = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    layout: options.Layout = None,
    unsandboxed: Annotated[
        bool,
        typer.Option("--allow-unsandboxed", help="Run code even where no sandbox works."),
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    memory: options.Memory = None,
    spill: options.Spill = None,
    json: options.Json = False,
) -> None:
    """Work through SUITE with a graph of agents, and score the answers.

    Every sample is kept as soon as it is done. The same command with the same
    --out continues where it stopped.
    """
    from kvcomm.tasks import Graders, load_suite
    from kvcomm.tasks.evaluate import Plan
    from kvcomm.tasks.record import CONFIG, write_summary

    modes, baselines, own = modes_of(reuse, compare)
    pool = anchors_of(gamma, anchors, modes)
    numbers = numbers_of(agents)
    quality = options.quality(target, audit_rate, budget)
    home = Home(
        engine,
        model,
        base_url=base_url,
        served_model=served_model,
        device=device,
        dtype=dtype,
        memory=options.size(memory),
        spill=spill,
        replicas=replicas,
    )
    found, tasks = load_suite(name, data)
    chosen, warm = select(tasks, limit, shuffle, ids, warmup)
    place = out or options.RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{found.name}"
    with Graders(unsandboxed) as graders, resumable(place):
        graders.ready(found.grade)

        def plan(number: int | None) -> Plan:
            team = team_of(
                found,
                tasks,
                graders,
                graph,
                folder,
                agents=number,
                rounds=rounds,
                seed=seed,
                max_tokens=max_tokens,
                temperature=temperature,
                layout=layout,
            )
            return Plan(
                found,
                chosen,
                team,
                modes,
                seed=seed,
                repeats=repeats,
                retries=retries,
                concurrent=concurrent,
                traces=traces,
                warmup=warm,
                anchors=pool,
                own=own,
                baselines=baselines,
            )

        plans = {number: plan(number) for number in numbers}
        if len(plans) > 1 and (place / CONFIG).exists():
            raise UsageError(
                f"{place} holds one evaluation, and these are several: use another --out"
            )
        if len(plans) == 1:
            value = evaluate(home, plans[numbers[0]], graders, place, quality)
            values = [value]
        else:
            values = [
                evaluate(home, planned, graders, place / f"agents-{number}", quality)
                for number, planned in plans.items()
            ]
            value = {"runs": values}
            write_summary(place, value)
    if json:
        print_json(value)
    else:
        console().print(show(values))
        say(f"kept in {place}: kvcomm eval report {place}")


def evaluate(
    home: Home, plan: Plan, graders: Graders, out: Path, quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Do what is left of a plan on an engine of its own, and sum it up."""
    from kvcomm.tasks.evaluate import Evaluation
    from kvcomm.tasks.record import write_summary
    from kvcomm.tasks.summary import whole_summary

    total = len(plan.work()) + len(plan.warming())
    with home.load() as engine, EvalProgress(total) as progress:
        evaluation = Evaluation(engine, plan, graders, out, quality=quality, on_sample=progress)
        samples = asyncio.run(evaluation.run())
        for warning in evaluation.warnings.values():
            complain(f"warning: {warning}")
        value = whole_summary(evaluation.config, samples, out)
        write_summary(out, value)
    return value
