"""Where things go: results to stdout, everything else to stderr, JSON alone on its stream."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console on stdout that leaves numbers and brackets in texts as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def err_console() -> Console:
    """The same on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a command."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def complain(line: str) -> None:
    """One line on stderr."""
    print(" ".join(line.split("\n")), file=sys.stderr, flush=True)
