"""Where things go: results to stdout, everything else to stderr, JSON alone on its stream."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """A console on stdout that leaves numbers and brackets in texts as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def err_console() -> Console:
    """The same on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def number_table(first: str, *columns: str) -> Table:
    """A table without lines: names on the left, numbers in the other columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a command."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def complain(line: str) -> None:
    """One line on stderr."""
    print(" ".join(line.split("\n")), file=sys.stderr, flush=True)
