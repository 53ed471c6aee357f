"""Plots of benchmark results; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_ttft(value: dict[str, Any], path: Path) -> None:
    """Time to first token by agent, one line a mode, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
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
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def plot_eval(values: Sequence[dict[str, Any]], path: Path) -> None:
    """Score against token reuse, one point a mode; and the time to first token by agent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), dpi=150)
    for value in values:
        for mode, found in value["modes"].items():
            label = f"{value['suite']}, {mode}"
            low, high = (abs(edge - found["score"]) for edge in found["ci95"])
            left.errorbar(
                100 * found["token_reuse"],
                100 * found["score"],
                yerr=[[100 * low], [100 * high]],
                marker="o",
                capsize=3,
                label=label,
            )
            right.plot(list(found["agents"]), list(found["agents"].values()), "o-", label=label)
    left.set_xlabel("prompt tokens not computed, %")
    left.set_ylabel("score, %")
    right.set_ylabel("time to first token, s (median)")
    right.set_yscale("log")
    right.tick_params(axis="x", rotation=20)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
