"""`kvcomm trace`: what happened in a run, shown, compared, followed, or for another program."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.output import console, print_json, print_table, say, writing
from kvcomm.errors import TraceError, UsageError
from kvcomm.extras import need

if TYPE_CHECKING:
    from kvcomm.trace import CallView, TraceRun
    from kvcomm.trace.events import RunFinished, RunStarted

app = typer.Typer(no_args_is_help=True, help="Look at what happened in a run.")
SEGMENT_FIELDS = {"name", "tokens", "computed", "prefix", "realigned", "ahead", "reason"}
# What only the reader of a trace needs.
FRAME = {"v", "t", "kind"}
Runs = Annotated[Path, options.option("DIR", "Where run folders are.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, its name, or a trace.jsonl.")
]


@app.command("list")
def list_runs(runs: Runs = options.RUNS, json: options.Json = False) -> None:
    """The runs in a folder, oldest first."""
    from kvcomm.trace.read import read_ends

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
    run: Run,
    segments: Annotated[
        bool, typer.Option("--segments", help="Show where every token of every call came from.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="The same, and task, prompts and messages whole.")
    ] = False,
    node: Annotated[str | None, options.option("NODE", "Only this node, with its times.")] = None,
    runs: Runs = options.RUNS,
    json: options.Json = False,
) -> None:
    """A run at a glance: who heard whom, what each call took and reused, what to change."""
    from kvcomm.trace.show import show_run, views_of

    found = _read(run, runs)
    if json:
        print_json(run_json(found, found.calls if node is None else views_of(found, node)))
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

    one, other = (_read(name, runs) for name in (first, second))
    if json:
        calls = [pair.to_json() for pair in pairs(one, other)]
        print_json({"first": _run_summary(one), "second": _run_summary(other), "calls": calls})
    else:
        console().print(show_diff(one, other))


@app.command("view")
def view(run: Run, runs: Runs = options.RUNS) -> None:
    """Look around in a run: agents, prompts by source, timeline, audits, events."""
    need("textual", "tui")
    # The trace stays to the end: to look for garbage in it takes longer than to read it.
    gc.disable()
    found = _read(run, runs)
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
    from kvcomm.trace.log import event_line
    from kvcomm.trace.read import find_run, follow

    for event in follow(find_run(run, runs)):
        if line := event_line(event):
            say(f"{event.t:8.2f}  {line}")


@app.command("export")
def export(
    run: Run,
    to: Annotated[str, options.option("FORMAT", "perfetto, csv, otel, html or parquet.")],
    out: Annotated[
        Path | None, options.option("FILE", "Where to write.", shown="in the run folder")
    ] = None,
    endpoint: Annotated[
        str | None,
        options.option("URL", "Send spans to a collector (http://HOST:4318) and write no file."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if there is one.")
    ] = False,
    runs: Runs = options.RUNS,
) -> None:
    """Write a run for Perfetto, a spreadsheet, a collector, a browser or a data frame."""
    from kvcomm.trace.export import FORMATS

    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown: choose one of {', '.join(FORMATS)}")
    found = _read(run, runs)
    if endpoint is not None:
        from kvcomm.trace.export.otel import send_otel

        if to != "otel" or out is not None:
            raise UsageError("--endpoint takes --to otel, and no --out")
        send_otel(found, endpoint)
        say(f"sent to {endpoint}")
        return
    path = out or found.path.parent / FORMATS[to].file
    if path.exists() and path.samefile(found.path):
        raise UsageError(f"{path} is the trace itself: choose another --out")
    # A link to nowhere counts: what is written would land elsewhere.
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists: choose another --out, or replace it with --force")
    with writing(path):
        FORMATS[to].write(found, path)
    say(str(path))


def _read(run: str, runs: Path) -> TraceRun:
    from kvcomm.trace import find_run, read_trace

    return read_trace(find_run(run, runs))


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
        "state": [event.model_dump(exclude=FRAME) for event in run.state],
        "retries": [event.model_dump(exclude=FRAME) for event in run.retries],
        "errors": [event.model_dump(exclude=FRAME) for event in run.errors],
        "skipped_lines": run.skipped,
    }


def _call_json(run: TraceRun, view: CallView) -> dict[str, Any]:
    """A call as `kvcomm run --json` has it, with its attempt, its prompt and its message."""
    call = view.call or view.interrupted
    return {
        "node": view.node,
        "attempt": view.attempt,
        "finished": view.call is not None,
        **(call.model_dump(exclude={*FRAME, "node", "attempt"}) if call else {}),
        "message": view.message.text if view.message else None,
        "segments": [
            {"kind": s.segment, **s.model_dump(include=SEGMENT_FIELDS), "text": run.text(s)}
            for s in view.steps
        ],
    }


def _run_summary(run: TraceRun) -> dict[str, Any]:
    return _summary(run.started, run.finished, len(run.done))


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
    from kvcomm.trace.text import seconds

    def cells(row: dict[str, Any]) -> Iterator[str]:
        wall = row.get("wall_s")
        yield from (row["run"], row.get("mode", ""), str(row.get("calls_finished", "")))
        yield from ("" if wall is None else seconds(wall), row["status"], row.get("model", ""))

    print_table(("~run", "mode", ">calls", ">time", "status", "~model"), map(cells, rows))
