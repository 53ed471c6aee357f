"""The calls of a trace as a table: one row an attempt, one value a column."""

from __future__ import annotations

from typing import Literal, NamedTuple

from kvcomm.trace.read import COUNTS, CallView, TraceRun

Cell = str | int | float | bool | None
TIMES = ("ttft_s", "decode_s", "ahead_s", "opened_at", "ready_at", "first_token_at", "finished_at")


class Column(NamedTuple):
    """A column; counts are tokens, times are seconds (`*_at`: since the run began)."""

    name: str
    kind: Literal["text", "whole", "real", "truth"]


COLUMNS = (
    *(Column(name, "text") for name in ("node", "agent")),
    *(Column(name, "whole") for name in ("round", "attempt")),
    *(Column(name, "text") for name in ("mode", "gate")),
    *(Column(name, "truth") for name in ("dense", "exact")),
    *(Column(name, "whole") for name in ("prompt_tokens", *COUNTS, "output_tokens")),
    *(Column(name, "real") for name in (*TIMES, "divergence")),
    Column("stop", "text"),
)


def rows(run: TraceRun) -> list[dict[str, Cell]]:
    """Every attempt in the order of the trace. What one that never finished lacks is None."""
    return [_row(run, view) for view in run.calls]


def _row(run: TraceRun, view: CallView) -> dict[str, Cell]:
    info = next((info for info in run.started.nodes if info.name == view.node), None)
    cells: dict[str, Cell] = {
        "node": view.node,
        "agent": info.agent if info else view.node,
        "round": info.round if info else 1,
        "attempt": view.attempt,
        "mode": run.started.mode,
        "prompt_tokens": view.prompt_tokens,
        **view.tokens,
        "divergence": view.divergence,
    }
    for column in COLUMNS:
        if column.name not in cells:
            cells[column.name] = getattr(view.call or view.interrupted, column.name, None)
    return {column.name: cells[column.name] for column in COLUMNS}
