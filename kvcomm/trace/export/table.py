"""The calls of a trace as a table, one row an attempt: CSV for spreadsheets, Parquet for frames."""

from __future__ import annotations

import csv
from pathlib import Path

from kvcomm.errors import TraceError
from kvcomm.extras import need
from kvcomm.trace.run import COUNTS, CallView, TraceRun

Cell = str | int | float | bool | None
# Counts are tokens, times are seconds (`*_at`: since the run began).
TEXT, WHOLE, REAL, TRUTH = "string", "int64", "double", "bool"
TIMES = ("ttft_s", "decode_s", "ahead_s", "opened_at", "ready_at", "first_token_at", "finished_at")
COLUMNS = {
    **dict.fromkeys(("node", "agent"), TEXT),
    **dict.fromkeys(("round", "attempt"), WHOLE),
    **dict.fromkeys(("mode", "gate"), TEXT),
    **dict.fromkeys(("dense", "exact"), TRUTH),
    **dict.fromkeys(("prompt_tokens", *COUNTS, "output_tokens"), WHOLE),
    **dict.fromkeys((*TIMES, "divergence"), REAL),
    "stop": TEXT,
}
# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _row(run: TraceRun, view: CallView) -> dict[str, Cell]:
    """An attempt; what one that never finished lacks is None."""
    info = run.info(view.node)
    known: dict[str, Cell] = {
        "node": view.node,
        "agent": info.agent,
        "round": info.round,
        "attempt": view.attempt,
        "mode": run.started.mode,
        "prompt_tokens": view.prompt_tokens,
        **view.tokens,
        "divergence": view.divergence,
    }
    return {name: known.get(name, getattr(view.ended, name, None)) for name in COLUMNS}


def write_csv(run: TraceRun, path: Path) -> None:
    """Write the calls of `run`; unknown values are empty, texts never begin a formula."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        for view in run.calls:
            writer.writerow({name: _safe(cell) for name, cell in _row(run, view).items()})


def _safe(cell: Cell) -> Cell:
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def write_parquet(run: TraceRun, path: Path) -> None:
    """Write the calls of `run`, columns with types.

    Raises `UsageError` when pyarrow is not installed, `TraceError` for numbers beyond 64 bits.
    """
    need("pyarrow", "parquet")
    import pyarrow
    from pyarrow import parquet

    kinds = [(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    rows = [_row(run, view) for view in run.calls]
    try:
        table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds))
    except OverflowError:
        raise TraceError(f"{run.path} counts more tokens than Parquet can hold") from None
    parquet.write_table(table, path)
