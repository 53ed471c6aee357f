"""Plots of benchmark results; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

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
