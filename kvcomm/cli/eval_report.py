"""`kvcomm eval report RUN…`: evaluations beside each other, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcomm.cli import options
from kvcomm.cli.output import console, number_table, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of `kvcomm eval`.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw score against reuse, and the time to first token by agent.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Put evaluations beside each other. What is not finished is reported as far as it is."""
    from kvcomm.tasks.record import SAMPLES, evaluations, read_config, read_samples
    from kvcomm.tasks.summary import whole_summary

    if plot is not None:
        options.need("matplotlib", "plot")
    values = []
    for run in runs:
        for place in evaluations(run if run.exists() else options.RUNS / run):
            values.append(whole_summary(read_config(place), read_samples(place / SAMPLES), place))
    if json:
        print_json({"runs": values})
    else:
        console().print(show(values))
    if plot is not None:
        from kvcomm.cli.plot import plot_eval

        plot_eval(values, plot)


def show(values: Sequence[dict[str, Any]]) -> RenderableType:
    """One line for each mode of each evaluation, and what their comparisons came to."""
    from rich.console import Group
    from rich.text import Text

    columns = ("n", "score", "95 %", "tokens", "calls", "TTFT s", "errors")
    table = number_table("suite, mode", *columns)
    notes: list[RenderableType] = []
    for value in values:
        for mode, found in value["modes"].items():
            low, high = found["ci95"]
            ttft = "–" if found["ttft_s"] is None else f"{found['ttft_s']:.3f}"
            table.add_row(
                f"{value['suite']}, {mode}",
                f"{found['samples']:,}",
                f"{found['score']:.1%}",
                f"{low:.0%}–{high:.0%}",
                f"{found['token_reuse']:.1%}",
                f"{found['call_reuse']:.1%}",
                ttft,
                str(found["errors"]),
            )
        if value["compare"]:
            notes += ["", Text(_compared(value["mode"], value["compare"]))]
        notes += [
            Text(f"{mode}: {', '.join(parts)}")
            for mode, found in value["modes"].items()
            if (parts := _more(found))
        ]
    legend = (
        "score: mean over samples, with its bootstrap interval; tokens: share of prompt tokens not "
        "computed; calls: share of calls that were realigned; TTFT: median of the last agent."
    )
    return Group(table, *notes, "", Text(legend, style="dim"))


def _more(found: dict[str, Any]) -> list[str]:
    """Other measures of a mode, and what its audits came to."""
    parts = [f"{name} {value:.3f}" for name, value in found["metrics"].items()]
    parts += [f"{name} {value:.3f}" for name, value in found.items() if name.startswith("pass@")]
    audits = found["audits"]
    if audits["count"]:
        parts.append(f"{audits['count']} audits with a mean divergence of {audits['mean']:.4f}")
    return parts


def _compared(mode: str, found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    judge = found["consistency"]["judge"]
    parts = [
        f"{mode} against {found['mode']}: {found['difference']:+.1%} "
        f"({low:+.1%} to {high:+.1%}, McNemar p = {found['p_value']:.2f})",
        f"same answer {found['consistency']['answer']:.0%}",
        "" if judge is None else f"same choice of the last agent {judge:.0%}",
        "" if found["ttft_ratio"] is None else f"TTFT {found['ttft_ratio']:.1f} times shorter",
    ]
    return "; ".join(part for part in parts if part)
