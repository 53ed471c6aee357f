"""`kvcomm eval report RUN…`: evaluations beside each other, as a table, a plot, or a file."""

from __future__ import annotations

from pathlib import Path

from kvcomm.cli import options
from kvcomm.cli.eval_table import show, to_csv, to_latex
from kvcomm.cli.options import Option
from kvcomm.cli.output import console, print_json, say, writing
from kvcomm.errors import UsageError

FORMATS = {"csv": to_csv, "latex": to_latex}


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
