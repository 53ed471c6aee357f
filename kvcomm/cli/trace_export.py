"""`kvcomm trace export`: a run as a file for another program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.output import say
from kvcomm.errors import UsageError


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, its name, or a trace.jsonl.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="perfetto, csv, otel, html or parquet.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Where to write.", show_default="in the run folder"
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Send spans to a collector (http://HOST:4318) and write no file.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if there is one.")
    ] = False,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where run folders are.")
    ] = options.RUNS,
) -> None:
    """Write a run for Perfetto, a spreadsheet, a collector, a browser or a data frame."""
    from kvcomm.trace.export import FORMATS
    from kvcomm.trace.read import find_run, read_trace

    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown: choose one of {', '.join(FORMATS)}")
    found = read_trace(find_run(run, runs))
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
    try:
        FORMATS[to].write(found, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    say(str(path))
