"""Traces for other programs: a format is a function that writes one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvcomm.trace.export.html import write_html
from kvcomm.trace.export.otel import write_otel
from kvcomm.trace.export.perfetto import write_perfetto
from kvcomm.trace.export.table import write_csv, write_parquet
from kvcomm.trace.run import TraceRun


class Format(NamedTuple):
    """How a format is written, and the name of its file when none is given."""

    write: Callable[[TraceRun, Path], None]
    file: str


FORMATS: dict[str, Format] = {
    "perfetto": Format(write_perfetto, "trace.perfetto.json"),
    "csv": Format(write_csv, "calls.csv"),
    "otel": Format(write_otel, "trace.otlp.jsonl"),
    "html": Format(write_html, "trace.html"),
    "parquet": Format(write_parquet, "calls.parquet"),
}
