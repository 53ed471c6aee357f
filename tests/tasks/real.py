"""Real benchmark rows, for the tests that grade with them: those of the folder `KVCOMM_DATA`."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def real_rows(name: str) -> list[dict[str, Any]]:
    """The rows of `KVCOMM_DATA/NAME.jsonl`; the calling test is skipped where they are missing."""
    folder = os.environ.get("KVCOMM_DATA")
    path = Path(folder) / f"{name}.jsonl" if folder else None
    if path is None or not path.exists():
        pytest.skip(f"needs {name}.jsonl in the folder KVCOMM_DATA")
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]
