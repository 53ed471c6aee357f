"""`kvcomm eval SUITE`: a suite through a graph, scored; `kvcomm eval report RUN…`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kvcomm.cli import options
from kvcomm.cli.eval_report import report, show
from kvcomm.cli.home import Home
from kvcomm.cli.output import complain, console, print_json, say
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph
    from kvcomm.tasks import Graders, Suite, Task


class SuiteFirst(TyperGroup):
    """`eval SUITE` is the command `suite`, whatever the suite is called; `report` is another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command before a suite or an option."""
        if args[:1] != ["report"]:
            args = ["suite", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=SuiteFirst, help="Work through a suite of tasks, and score the answers.")
app.command("report")(report)


@app.command("suite")
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
    agents: options.Agents = None,
    rounds: options.Rounds = None,
    model: options.TeamModel = None,
    engine: options.Engine = "local",
    base_url: options.BaseUrl = None,
    served_model: options.ServedModel = None,
    replicas: options.Replicas = None,
    reuse: options.Reuse = "auto",
    compare: Annotated[
        str | None,
        typer.Option(metavar="R", help="Another mode, on the same samples.", show_default=False),
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
    repeats: Annotated[
        int,
        typer.Option(
            max=options.MOST_TIMES, metavar="N", help="Times each task is done (pass@1, pass@N)."
        ),
    ] = 1,
    concurrent: Annotated[
        int, typer.Option(max=options.MOST_AGENTS, metavar="N", help="Tasks under way at once.")
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
            help="Where everything is kept. The same command goes on there.",
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

    Every sample is kept when it is done: the same command with the same --out goes on where it was
    stopped. `kvcomm eval report RUN...` puts several evaluations beside each other.
    """
    from kvcomm.tasks import Graders, load_suite
    from kvcomm.tasks.evaluate import Evaluation, Plan
    from kvcomm.tasks.summary import whole_summary

    modes = [options.check_mode(reuse)]
    if compare is not None:
        modes.append(options.check_mode(compare))
        if compare == reuse:
            raise UsageError(
                f"--compare {compare} is the mode of --reuse: compare with another one"
            )
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
    tasks = select(tasks, limit, shuffle, ids)
    with Graders(unsandboxed) as graders:
        team = _team(
            found,
            graders,
            graph,
            folder,
            agents=agents,
            rounds=rounds,
            seed=seed,
            max_tokens=max_tokens,
            temperature=temperature,
            layout=layout,
        )
        plan = Plan(
            found,
            tasks,
            team,
            modes,
            seed=seed,
            repeats=repeats,
            retries=retries,
            concurrent=concurrent,
            traces=traces,
        )
        place = out or options.RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{found.name}"

        from kvcomm.cli.eval_progress import EvalProgress

        with (
            home.load() as loaded,
            EvalProgress(len(plan.work())) as progress,
        ):
            evaluation = Evaluation(
                loaded, plan, graders, place, quality=quality, on_sample=progress
            )
            samples = asyncio.run(evaluation.run())
            for warning in evaluation.warnings.values():
                complain(f"warning: {warning}")
            value = whole_summary(evaluation.config, samples, place)
            evaluation.log.write_summary(value)
    if json:
        print_json(value)
    else:
        console().print(show([value]))
        say(f"kept in {place}: kvcomm eval report {place}")


def select(
    tasks: Sequence[Task], limit: int | None, shuffle: int | None, ids: str | None
) -> list[Task]:
    """The tasks that are asked for. Raises `UsageError` for an unknown id, and for none at all."""
    chosen = list(tasks)
    if ids is not None:
        wanted = [name.strip() for name in ids.split(",")]
        known = {task.id: task for task in tasks}
        if unknown := [name for name in wanted if name not in known]:
            some = ", ".join(list(known)[:3])
            raise UsageError(f"--ids: there is no task {unknown[0]!r}; ids are such as {some}")
        chosen = [known[name] for name in dict.fromkeys(wanted)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(chosen)
    if limit is not None:
        if limit < 1:
            raise UsageError(f"--limit {limit}: at least 1 task is needed")
        chosen = chosen[:limit]
    return chosen


def _team(
    suite: Suite, graders: Graders, graph: str | None, folder: Path | None, **change: Any
) -> AgentGraph:
    """The suite's team, or the graph that is asked for, which reads passages the suite brings."""
    from kvcomm.cli.topologies import adjusted, build_graph, with_passages
    from kvcomm.tasks.teams import rag_team

    if folder is not None:
        if graph is not None:
            raise UsageError("--folder belongs to the team with a retriever: leave --graph out")
        return adjusted(rag_team(graders, folder=folder), **_adjustments(change))
    if graph is not None:
        return with_passages(build_graph(graph, **change), suite.inputs)
    for option in ("agents", "rounds"):
        if change[option] is not None:
            raise UsageError(f"--{option} belongs to a ready-made graph: name one with --graph")
    return adjusted(suite.team(graders), **_adjustments(change))


def _adjustments(change: dict[str, Any]) -> dict[str, Any]:
    return {name: change[name] for name in ("max_tokens", "temperature", "layout")}
