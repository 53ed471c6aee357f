"""CSV for spreadsheets: one row a call."""

from __future__ import annotations

import csv
from pathlib import Path

from kvcomm.trace.export.calls import COLUMNS, Cell, rows
from kvcomm.trace.read import TraceRun

# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(run: TraceRun, path: Path) -> None:
    """Write the calls of `run`; unknown values are empty, texts never begin a formula."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in COLUMNS])
        writer.writeheader()
        for row in rows(run):
            writer.writerow({name: _safe(cell) for name, cell in row.items()})


def _safe(cell: Cell) -> Cell:
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
