"""Benchmarks: what `kvcomm bench` runs, and what one found, for a program and for a reader."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kvcomm.errors import UsageError


@dataclass(frozen=True)
class Findings:
    """One JSON object, and a table of the same with notes below it."""

    value: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def chosen(what: str, names: str | None, known: Collection[str]) -> list[str]:
    """Names separated by commas, or all that are known. Raises `UsageError` for another one."""
    found = list(known) if names is None else [name.strip() for name in names.split(",")]
    for name in found:
        if name not in known:
            raise UsageError(f"{what} {name!r} is unknown: choose among {', '.join(known)}")
    return found
