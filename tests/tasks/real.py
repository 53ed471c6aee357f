"""Cases of scoring, one a line in `scoring/answers`, and real rows, of the folder `KVCOMM_DATA`."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ANSWERS = Path(__file__).parent / "scoring" / "answers"


def read_lines(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def cases(name: str) -> list[Any]:
    """Parameters from `answers/NAME.jsonl`, whose lines begin with a kind: it names the test."""
    rows = read_lines(ANSWERS / f"{name}.jsonl")
    return [pytest.param(*case, id=f"{kind}: {case[0]}") for kind, *case in rows]


@cache
def real_rows(name: str) -> list[dict[str, Any]]:
    """The rows of `KVCOMM_DATA/NAME.jsonl`; the calling test is skipped where they are missing."""
    folder = os.environ.get("KVCOMM_DATA")
    path = Path(folder) / f"{name}.jsonl" if folder else None
    if path is None or not path.exists():
        pytest.skip(f"needs {name}.jsonl in the folder KVCOMM_DATA")
    return read_lines(path)
