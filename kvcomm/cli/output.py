"""Where things go: results to stdout, everything else to stderr, JSON alone on its stream."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcomm.errors import UsageError
from kvcomm.trace.text import STEERING, plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment


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


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on stdout, its columns named as `plain_table` takes them."""
    from kvcomm.trace.tables import plain_table

    table = plain_table(*columns)
    for row in rows:
        table.add_row(*row)
    console().print(table)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `UsageError` where a file that the user named cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a command; characters that steer a terminal are written as `\\u…`."""
    print(STEERING.sub(_escaped, json.dumps(value, indent=2, ensure_ascii=False)))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def complain(line: str) -> None:
    """One line on stderr."""
    print(plain(" ".join(line.split("\n"))), file=sys.stderr, flush=True)
