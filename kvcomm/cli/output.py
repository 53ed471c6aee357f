"""Where things go: results to stdout, everything else to stderr, JSON alone on its stream."""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from kvcomm.trace.text import STEERING, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table


@cache
def _console() -> type[Console]:
    """rich's console, imported when something is drawn; texts in it cannot steer the terminal."""
    from rich.console import Console
    from rich.segment import Segment

    class Harmless(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                if control is None and STEERING.search(text):
                    yield Segment(plain(text), style)
                else:
                    yield segment

    return Harmless


def console() -> Console:
    """A console on stdout that leaves numbers and brackets in texts as they are."""
    return _console()(highlight=False, markup=False, emoji=False)


def err_console() -> Console:
    """The same on stderr."""
    return _console()(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A text on stdout."""
    print(plain(text), flush=True)


def number_table(first: str, *columns: str, before: Sequence[str] = ()) -> Table:
    """A table without lines: names on the left, numbers in the other columns.

    Names in columns `before` the first one are wrapped where there is no room.
    """
    from kvcomm.trace.tables import plain_table

    return plain_table(*(f"~{name}" for name in before), first, *(f">{name}" for name in columns))


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a command; characters that steer a terminal are written as `\\u…`."""
    print(STEERING.sub(_escaped, json.dumps(value, indent=2, ensure_ascii=False)))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def complain(line: str) -> None:
    """One line on stderr."""
    print(plain(" ".join(line.split("\n"))), file=sys.stderr, flush=True)
