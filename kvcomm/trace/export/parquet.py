"""Parquet for data frames: one row a call, columns with types; needs the extra `parquet`."""

from __future__ import annotations

from pathlib import Path

from kvcomm.errors import TraceError
from kvcomm.extras import need
from kvcomm.trace.export.calls import COLUMNS, rows
from kvcomm.trace.read import TraceRun


def write_parquet(run: TraceRun, path: Path) -> None:
    """Write the calls of `run`.

    Raises `UsageError` when pyarrow is not installed, `TraceError` for numbers beyond 64 bits.
    """
    need("pyarrow", "parquet")
    import pyarrow
    from pyarrow import parquet

    types = {
        "text": pyarrow.string(),
        "whole": pyarrow.int64(),
        "real": pyarrow.float64(),
        "truth": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(column.name, types[column.kind]) for column in COLUMNS])
    try:
        table = pyarrow.Table.from_pylist(rows(run), schema=schema)
    except OverflowError:
        raise TraceError(f"{run.path} counts more tokens than Parquet can hold") from None
    parquet.write_table(table, path)
