"""`kvcomm trace`: what happened in a run, shown, compared, followed, or for another program."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import typer

from kvcomm.cli import options
from kvcomm.cli.options import RUNS, Option
from kvcomm.cli.output import console, print_json, print_table, say, writing
from kvcomm.errors import TraceError, UsageError
from kvcomm.extras import need
from kvcomm.trace.events import RunFinished, RunStarted
from kvcomm.trace.log import event_line
from kvcomm.trace.read import find_run, follow, read_ends, read_trace
from kvcomm.trace.run import COUNTS, CallView, TraceRun
from kvcomm.trace.text import seconds

app = typer.Typer(no_args_is_help=True, help="Look at what happened in a run.")
# What only the reader of a trace needs.
FRAME = {"v", "t", "kind"}
RUN = Option("RUN", "A run folder, its name, or a trace.jsonl.")
SEGMENT = {"name", "tokens", *COUNTS, "reason"}


@app.command("list")
@options.takes()
def list_runs(*, runs: Path = RUNS, json: bool = False) -> None:
    """The runs in a folder, oldest first."""
    rows: list[dict[str, Any]] = []
    # A demo is a folder of run folders, so two levels are read.
    for path in [*runs.glob("*/trace.jsonl"), *runs.glob("*/*/trace.jsonl")]:
        row: dict[str, Any] = {"run": path.parent.relative_to(runs).as_posix()}
        try:
            ends = read_ends(path)
            rows.append(row | _summary(ends.started, ends.finished, ends.calls))
        except TraceError as error:
            rows.append(row | {"status": "unreadable", "error": str(error)})
    rows.sort(key=lambda row: (row.get("started", ""), row["run"]))
    if json:
        print_json({"runs": rows})
    elif not rows:
        say(f"no runs in {runs}/ (`kvcomm run` writes one)")
    else:
        for row in rows:
            row["time"] = "" if row.get("wall_s") is None else seconds(row["wall_s"])
        fields = ("run", "mode", "calls_finished", "time", "status", "model")
        cells = ([str(row.get(field, "")) for field in fields] for row in rows)
        print_table(("~run", "mode", ">calls", ">time", "status", "~model"), cells)


@app.command("show")
@options.takes(
    run=RUN,
    segments="Show where every token of every call came from.",
    text="The same, and task, prompts and messages whole.",
    node=Option("NODE", "Only this node, with its times."),
)
def show(
    run: str,
    *,
    segments: bool = False,
    text: bool = False,
    node: str | None = None,
    runs: Path = RUNS,
    json: bool = False,
) -> None:
    """A run at a glance: who heard whom, what each call took and reused, what to change."""
    from kvcomm.trace.show import show_run, views_of

    found = read_trace(find_run(run, runs))
    if json:
        print_json(run_json(found, found.calls if node is None else views_of(found, node)))
    else:
        console().print(show_run(found, text=text, segments=segments, node=node))


@app.command("diff")
@options.takes(first=Option("A", "A run."), second=Option("B", "Another run of the same graph."))
def diff(first: str, second: str, *, runs: Path = RUNS, json: bool = False) -> None:
    """Two runs of a graph side by side: tokens, times, divergence, where the texts part."""
    from kvcomm.trace.diff import pairs, show_diff

    one, other = (read_trace(find_run(name, runs)) for name in (first, second))
    if json:
        calls = [pair.to_json() for pair in pairs(one, other)]
        print_json({"first": _run_summary(one), "second": _run_summary(other), "calls": calls})
    else:
        console().print(show_diff(one, other))


@app.command("view")
@options.takes(run=RUN)
def view(run: str, *, runs: Path = RUNS) -> None:
    """Look around in a run: agents, prompts by source, timeline, audits, events."""
    need("textual", "tui")
    # The trace stays to the end: to look for garbage in it takes longer than to read it.
    gc.disable()
    found = read_trace(find_run(run, runs))
    gc.freeze()
    gc.enable()

    from kvcomm.trace.view import Viewer

    Viewer(found).run()


@app.command("tail")
@options.takes(run=Option("RUN", "A run that goes on, or one that ended."))
def tail(run: str, *, runs: Path = RUNS) -> None:
    """Follow a run, a line an event, until it ends."""
    for event in follow(find_run(run, runs)):
        if line := event_line(event):
            say(f"{event.t:8.2f}  {line}")


@app.command("export")
@options.takes(
    run=RUN,
    to=Option("FORMAT", "perfetto, csv, otel, html or parquet."),
    out=Option("FILE", "Where to write.", shown="in the run folder"),
    endpoint=Option("URL", "Send spans to a collector (http://HOST:4318) and write no file."),
    force="Replace the file if there is one.",
)
def export(
    run: str,
    *,
    to: str,
    out: Path | None = None,
    endpoint: str | None = None,
    force: bool = False,
    runs: Path = RUNS,
) -> None:
    """Write a run for Perfetto, a spreadsheet, a collector, a browser or a data frame."""
    from kvcomm.trace.export import FORMATS
    from kvcomm.trace.export.otel import send_otel

    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown: choose one of {', '.join(FORMATS)}")
    found = read_trace(find_run(run, runs))
    if endpoint is not None:
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


def run_json(run: TraceRun, views: list[CallView]) -> dict[str, Any]:
    """The object that `kvcomm trace show --json` prints: `views` are the calls it holds."""
    parts: dict[str, list[Any]] = {"state": run.state, "retries": run.retries, "errors": run.errors}
    about = {"seed", "device", "dtype", "inputs", "answer_node", "nodes"}
    return {
        "trace": str(run.path.parent),
        **_run_summary(run),
        **run.started.model_dump(include=about),
        "answer": run.finished.answer if run.finished else None,
        "calls": [_call_json(run, view) for view in views],
        "totals": run.finished.totals.model_dump() if run.finished else None,
        **{name: [e.model_dump(exclude=FRAME) for e in events] for name, events in parts.items()},
        "skipped_lines": run.skipped,
    }


def _call_json(run: TraceRun, view: CallView) -> dict[str, Any]:
    """A call as `kvcomm run --json` has it, with its attempt, its prompt and its message."""
    return {
        "node": view.node,
        "attempt": view.attempt,
        "finished": view.call is not None,
        **(view.ended.model_dump(exclude=FRAME) if view.ended else {}),
        "message": view.message.text if view.message else None,
        "segments": [
            {"kind": step.segment, **step.model_dump(include=SEGMENT), "text": run.text(step)}
            for step in view.steps
        ],
    }


def _run_summary(run: TraceRun) -> dict[str, Any]:
    return _summary(run.started, run.finished, len(run.done))


def _summary(started: RunStarted, finished: RunFinished | None, calls: int) -> dict[str, Any]:
    return {
        **started.model_dump(include={"started", "graph", "mode", "model"}),
        "status": finished.status if finished else "cut off",
        "calls_finished": calls,
        "wall_s": finished.totals.wall_s if finished else None,
    }
