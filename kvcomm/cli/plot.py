"""Plots of benchmark results; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from kvcomm.cli.output import writing

MARKERS = "osD^vPX*<>ph"  # of one evaluation after the other


def plot_ttft(value: dict[str, Any], path: Path) -> None:
    """Time to first token by agent, one line a mode, logarithmic."""
    figure, axes = _figure(1, (7, 4.2))
    for name, mode in value["modes"].items():
        times = [agent["ttft_s"] for agent in mode["agents"]]
        axes.plot(range(1, len(times) + 1), times, marker="o", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("agent")
    axes.set_ylabel("time to first token, s")
    axes.set_xticks(range(1, len(times) + 1))
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, ncols=2, fontsize=8)
    axes.set_title(f"{value['model']}, {value['hardware']}", fontsize=8)
    _save(figure, path)


def plot_eval(values: Sequence[dict[str, Any]], path: Path) -> None:
    """Score against token reuse, one point a mode; and the time to first token by agent.

    A mode has its colour in all evaluations, and an evaluation its marker. Agents are numbered in
    the order in which they are called. Modes without a sample are left out.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    from kvcomm.cli.eval_table import labels_of

    figure, (left, right) = _figure(2, (10.5, 3.8))
    times: list[float] = []
    modes = dict.fromkeys(mode for value in values for mode in value["modes"])
    colours = {mode: f"C{number}" for number, mode in enumerate(modes)}
    names = labels_of(values)
    for value, marker in zip(values, cycle(MARKERS), strict=False):
        for mode, found in value["modes"].items():
            if not found["samples"]:
                continue
            look = {"color": colours[mode], "marker": marker}
            low, high = (abs(edge - found["score"]) for edge in found["ci95"])
            reuse, score = 100 * found["token_reuse"], 100 * found["score"]
            left.errorbar(reuse, score, yerr=[[100 * low], [100 * high]], capsize=3, **look)
            by_agent = list(found["agents"].values())
            times += by_agent
            right.plot(range(1, len(by_agent) + 1), by_agent, **look)
    left.set_xlabel("prompt tokens not computed, %")
    left.set_ylabel("score, %")
    right.set_xlabel("agent")
    right.set_ylabel("time to first token, s (median)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_scale(right, [time for time in times if time > 0])
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    said = [Line2D([], [], color=colour, label=mode) for mode, colour in colours.items()]
    said += [
        Line2D([], [], color="0.3", linestyle="", marker=marker, label=name)
        for name, marker in zip(names, cycle(MARKERS), strict=False)
        if name
    ]
    figure.legend(handles=said, loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, path)


def _figure(columns: int, size: tuple[float, float]) -> Any:
    """A figure that needs no display, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=size, dpi=150, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    """Write a figure and forget it. Raises `UsageError` for a file that cannot be written."""
    from matplotlib import pyplot

    try:
        with writing(path):
            figure.savefig(path)
    finally:
        pyplot.close(figure)


def _plain_scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where values differ tenfold, else one from 0; its ticks plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not values or max(values) < 10 * min(values):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
