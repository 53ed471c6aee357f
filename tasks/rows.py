"""Rows of a suite: from JSON lines, in a folder or shipped, or from the hub."""

from __future__ import annotations

import json
import math
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.extras import has
from kvcomm.tasks.task import DATA
from kvcomm.trace.text import shorten

FOLDER = "KVCOMM_DATA"
# Tools that mark the beginning of their files leave one where files are put one behind the other.
ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub: its id, configuration and split."""

    id: str
    split: str = "test"
    config: str | None = None


@dataclass(frozen=True)
class DataRow:
    """One row, and where it stands, for errors."""

    value: Mapping[str, Any]
    where: str
    number: int


def rows_of(name: str, hub: Hub | None, shipped: bool, folder: Path | None) -> list[DataRow]:
    """The rows of a suite: `FOLDER/NAME.jsonl`, else the file shipped with kvcomm, else the hub.

    The folder may stand in `KVCOMM_DATA`. Raises `UsageError` when there are none.
    """
    file = f"{name}.jsonl"
    place = data_folder(folder)
    path = place / file if place else None
    if shipped and not (path and path.exists()):
        path = DATA / file
    if path and (path.exists() or hub is None):
        return read_rows(path)
    if hub and has("datasets"):
        return _from_hub(hub)
    sought = f"{path} is not there" if path else f"no folder is given ({FOLDER} is not set)"
    from_hub = f', or pip install "kvcomm[hf]" to load {hub.id} from the hub' if hub else ""
    raise UsageError(
        f"{name} needs its rows, and {sought}: pass --data DIR with DIR/{file}{from_hub}"
    )


def data_folder(folder: Path | None) -> Path | None:
    """The folder that rows are read from: the one given, else that of `KVCOMM_DATA`, else none."""
    return folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)


def read_rows(path: Path) -> list[DataRow]:
    """The JSON objects of a file, one a line.

    Raises `UsageError` for a file that cannot be read, and with the line of a bad one.
    """
    # A pipe or a device would never end.
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot read tasks from {path}: it is not a file")
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise UsageError(f"cannot read tasks from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read tasks from {path}: it is not UTF-8 text") from None
    rows = []
    for number, line in enumerate((line.strip(f"{ORDER_MARK} \t") for line in lines), 1):
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line, parse_constant=_constant)
            if "\\u" in line:  # half a character can be spelled, and not be written down again
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {shorten(str(error), 200)}") from None
        if not isinstance(value, dict):
            raise UsageError(f"{where} is no JSON object but {type(value).__name__}")
        rows.append(DataRow(value, where, number))
    return rows


def read_text(path: Path) -> str:
    """A user's text file, as UTF-8, or as the UTF-16 that its byte order mark announces.

    Raises `OSError`, and `UnicodeDecodeError` for anything else.
    """
    with path.open("rb") as file:
        wide = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    return path.read_text(encoding="utf-16" if wide else "utf-8-sig")


def row_id(row: Mapping[str, Any], *fields: str, name: str) -> str:
    """The first id, a text or a number, that a row gives in `fields`; else, or if blank, `name`."""
    given = (as_text(row[f], "id").strip() for f in fields if not _missing(row.get(f)))
    return next(filter(None, given), name)


def text_of(row: Mapping[str, Any], field: str) -> str:
    """The text of a field. Raises `ValueError` for null and all that is no text or number."""
    return as_text(row[field], field)


def texts_of(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The texts of a field that is a list, null or not there. Raises `ValueError`."""
    return () if _missing(row.get(field)) else as_texts(row[field], field)


def list_of(row: Mapping[str, Any], field: str) -> Any:
    """A field that is a list, or a dictionary of lists. Raises `ValueError` for anything else."""
    if not isinstance(row[field], list | tuple | Mapping):
        raise ValueError(f"{field!r} must be a list, not {_shown(row[field])}")
    return row[field]


def as_texts(value: object, field: str) -> tuple[str, ...]:
    """A list of texts. Raises `ValueError` for anything else."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field!r} must be a list of texts, not {_shown(value)}")
    return tuple(as_text(item, field) for item in value)


def as_text(value: object, field: str) -> str:
    """A text, or a number as one: where a column has gaps, tables write 60.0 for 60."""
    if isinstance(value, str):
        return value
    if _missing(value) or isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field!r} must be a text, not {_shown(value)}")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: object) -> str:
    return "null" if _missing(value) else f"{value!r:.40}"


def _constant(name: str) -> None:
    """NaN is what tables write for null. Raises `ValueError` for infinities."""
    if name != "NaN":
        raise ValueError(f"{name} is no number of JSON")


def _from_hub(hub: Hub) -> list[DataRow]:
    import datasets

    try:
        rows = datasets.load_dataset(hub.id, hub.config, split=hub.split)
    except Exception as error:
        raise UsageError(
            f"cannot load {hub.id} from the hub ({error}): pass --data DIR instead"
        ) from error
    return [DataRow(dict(row), f"{hub.id}, row {n}", n) for n, row in enumerate(rows, 1)]
