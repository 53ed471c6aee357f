"""`kvcomm eval report RUN…`: evaluations beside each other, as a table, a plot, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.eval_table import show, to_csv, to_latex
from kvcomm.cli.output import console, print_json, say, writing
from kvcomm.errors import UsageError

FORMATS = ("csv", "latex")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Output folders of `kvcomm eval`, or folders of several."
        ),
    ],
    by_agent: Annotated[
        bool, typer.Option("--by-agent", help="Add a line for each agent: tokens, reuse, TTFT.")
    ] = False,
    to: Annotated[
        str | None,
        options.option(
            "FORMAT",
            "csv (every number, one row a mode) or latex (booktabs), instead of the table.",
        ),
    ] = None,
    out: Annotated[
        Path | None, options.option("FILE", "Where --to is written.", shown="stdout")
    ] = None,
    plot: Annotated[
        Path | None,
        options.option(
            "FILE", "Draw score against reuse, and TTFT by agent: FILE.png, .pdf, .svg."
        ),
    ] = None,
    json: options.Json = False,
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
    if plot is not None:
        options.check_plot(plot)
    values = []
    for run in runs:
        for place in evaluations(run if run.exists() else options.RUNS / run):
            values.append(whole_summary(read_config(place), read_samples(place / SAMPLES), place))
    if to is not None:
        text = to_csv(values) if to == "csv" else to_latex(values)
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
