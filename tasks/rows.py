"""Rows of a suite: from JSON lines, in a folder or shipped, or from the hub."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.tasks.task import DATA
from kvcomm.trace.text import shorten

FOLDER = "KVCOMM_DATA"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub: its id, configuration and split."""

    id: str
    split: str
    config: str | None = None


@dataclass(frozen=True)
class Row:
    """One row, and where it stands, for errors."""

    value: Mapping[str, Any]
    where: str
    number: int


def rows_of(name: str, hub: Hub | None, shipped: bool, folder: Path | None) -> list[Row]:
    """The rows of a suite: `FOLDER/NAME.jsonl`, else the file shipped with kvcomm, else the hub.

    The folder may stand in `KVCOMM_DATA`. Raises `UsageError` when there are none.
    """
    place = data_folder(folder)
    path = place / f"{name}.jsonl" if place else None
    if shipped and not (path and path.exists()):
        path = DATA / f"{name}.jsonl"
    if path and (path.exists() or hub is None):
        return read_rows(path)
    if hub and importlib.util.find_spec("datasets"):
        return _from_hub(hub)
    sought = f"{path} is not there" if path else f"no folder is given ({FOLDER} is not set)"
    from_hub = f", or pip install 'kvcomm[hf]' to load {hub.id} from the hub" if hub else ""
    raise UsageError(
        f"{name} needs its rows, and {sought}: pass --data DIR with DIR/{name}.jsonl{from_hub}"
    )


def data_folder(folder: Path | None) -> Path | None:
    """The folder that rows are read from: the one given, else that of `KVCOMM_DATA`, else none."""
    return folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)


def read_rows(path: Path) -> list[Row]:
    """The JSON objects of a file, one a line. Raises `UsageError` with the line of a bad one."""
    rows = []
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line, parse_constant=_refused)
            if "\\u" in line:  # half a character can be spelled, and not be written down again
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {shorten(str(error), 200)}") from None
        if not isinstance(value, dict):
            raise UsageError(f"{where} is no JSON object but {type(value).__name__}")
        rows.append(Row(value, where, number))
    return rows


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that hold something, numbered from 1.

    Raises `UsageError` for a file that cannot be read.
    """
    # A pipe or a device would never end.
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot read tasks from {path}: it is not a file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read tasks from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read tasks from {path}: it is not UTF-8 text") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _from_hub(hub: Hub) -> list[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(hub.id, hub.config, split=hub.split)
    except Exception as error:
        raise UsageError(
            f"cannot load {hub.id} from the hub ({error}): pass --data DIR instead"
        ) from error
    return [Row(dict(row), f"{hub.id}, row {n}", n) for n, row in enumerate(rows, 1)]
