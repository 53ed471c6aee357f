"""`kvcomm trace list|show`: what happened in a run."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.output import console, print_json, say
from kvcomm.cli.trace_export import export
from kvcomm.errors import TraceError
from kvcomm.extras import need

if TYPE_CHECKING:
    from kvcomm.trace.events import RunFinished, RunStarted
    from kvcomm.trace.read import CallView, TraceRun

app = typer.Typer(no_args_is_help=True, help="Look at what happened in a run.")
app.command("export")(export)
SEGMENT_FIELDS = {"name", "tokens", "computed", "prefix", "realigned", "ahead", "reason"}
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders are.")]


@app.command("list")
def list_runs(runs: Runs = options.RUNS, json: options.Json = False) -> None:
    """The runs in a folder, oldest first."""
    from kvcomm.trace.ends import read_ends

    rows: list[dict[str, Any]] = []
    # A demo is a folder of run folders, so two levels are read.
    for path in [*runs.glob("*/trace.jsonl"), *runs.glob("*/*/trace.jsonl")]:
        name = path.parent.relative_to(runs).as_posix()
        try:
            ends = read_ends(path)
            rows.append({"run": name, **_summary(ends.started, ends.finished, ends.calls)})
        except TraceError as error:
            rows.append({"run": name, "status": "unreadable", "error": str(error)})
    rows.sort(key=lambda row: (row.get("started", ""), row["run"]))
    if json:
        print_json({"runs": rows})
    elif not rows:
        say(f"no runs in {runs}/ (`kvcomm run` writes one)")
    else:
        _print_list(rows)


@app.command("show")
def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, its name, or a trace.jsonl.")
    ],
    segments: Annotated[
        bool, typer.Option("--segments", help="Show where every token of every call came from.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="The same, and task, prompts and messages whole.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NODE", help="Only this node, with its times."),
    ] = None,
    runs: Runs = options.RUNS,
    json: options.Json = False,
) -> None:
    """A run at a glance: who heard whom, what each call took and reused, what to change."""
    from kvcomm.trace.read import find_run, read_trace
    from kvcomm.trace.show import show_run, views_of

    found = read_trace(find_run(run, runs))
    if json:
        views = found.calls if node is None else views_of(found, node)
        print_json(run_json(found, views))
    else:
        console().print(show_run(found, text=text, segments=segments, node=node))


@app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another run of the same graph.")],
    runs: Runs = options.RUNS,
    json: options.Json = False,
) -> None:
    """Two runs of a graph side by side: tokens, times, divergence, where the texts part."""
    from kvcomm.trace.diff import pairs, show_diff
    from kvcomm.trace.read import find_run, read_trace

    one, other = (read_trace(find_run(name, runs)) for name in (first, second))
    if json:
        calls = [pair.to_json() for pair in pairs(one, other)]
        print_json({"first": _run_summary(one), "second": _run_summary(other), "calls": calls})
    else:
        console().print(show_diff(one, other))


@app.command("view")
def view(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, its name, or a trace.jsonl.")
    ],
    runs: Runs = options.RUNS,
) -> None:
    """Look around in a run: agents, prompts by source, timeline, audits, events."""
    from kvcomm.trace.read import find_run, read_trace

    need("textual", "tui")
    path = find_run(run, runs)
    # The trace stays to the end: to look for garbage in it takes longer than to read it.
    gc.disable()
    found = read_trace(path)
    gc.freeze()
    gc.enable()

    from kvcomm.trace.view import Viewer

    Viewer(found).run()


@app.command("tail")
def tail(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run that goes on, or one that ended.")
    ],
    runs: Runs = options.RUNS,
) -> None:
    """Follow a run, a line an event, until it ends."""
    from kvcomm.trace.follow import follow
    from kvcomm.trace.lines import event_line
    from kvcomm.trace.read import find_run

    for event in follow(find_run(run, runs)):
        if line := event_line(event):
            say(f"{event.t:8.2f}  {line}")


def run_json(run: TraceRun, views: list[CallView]) -> dict[str, Any]:
    """The object that `kvcomm trace show --json` prints: `views` are the calls it holds."""
    started = run.started
    return {
        "trace": str(run.path.parent),
        **_run_summary(run),
        "seed": started.seed,
        "device": started.device,
        "dtype": started.dtype,
        "inputs": started.inputs,
        "answer_node": started.answer_node,
        "answer": run.finished.answer if run.finished else None,
        "nodes": [info.model_dump() for info in started.nodes],
        "calls": [_call_json(run, view) for view in views],
        "totals": run.finished.totals.model_dump() if run.finished else None,
        "state": [event.model_dump(exclude={"v", "t", "kind"}) for event in run.state],
        "retries": [event.model_dump(exclude={"v", "t", "kind"}) for event in run.retries],
        "errors": [event.model_dump(exclude={"v", "t", "kind"}) for event in run.errors],
        "skipped_lines": run.skipped,
    }


def _call_json(run: TraceRun, view: CallView) -> dict[str, Any]:
    """A call as `kvcomm run --json` has it, with its attempt, its prompt and its message."""
    call = view.call or view.interrupted
    return {
        "node": view.node,
        "attempt": view.attempt,
        "finished": view.call is not None,
        **(call.model_dump(exclude={"v", "t", "kind", "node", "attempt"}) if call else {}),
        "message": view.message.text if view.message else None,
        "segments": [
            {
                "kind": step.segment,
                **step.model_dump(include=SEGMENT_FIELDS),
                "text": run.text(step),
            }
            for step in view.steps
        ],
    }


def _run_summary(run: TraceRun) -> dict[str, Any]:
    return _summary(run.started, run.finished, sum(1 for view in run.calls if view.call))


def _summary(started: RunStarted, finished: RunFinished | None, calls: int) -> dict[str, Any]:
    return {
        "started": started.started,
        "graph": started.graph,
        "mode": started.mode,
        "model": started.model,
        "status": finished.status if finished else "cut off",
        "calls_finished": calls,
        "wall_s": finished.totals.wall_s if finished else None,
    }


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from kvcomm.trace.text import seconds

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("mode", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("model", overflow="fold")
    for row in rows:
        wall = row.get("wall_s")
        table.add_row(
            Text(row["run"]),
            Text(row.get("mode", "")),
            str(row.get("calls_finished", "")),
            seconds(wall) if wall is not None else "",
            row["status"],
            Text(row.get("model", "")),
        )
    console().print(table)
