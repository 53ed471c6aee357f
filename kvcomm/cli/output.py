"""Where things go: results to stdout, everything else to stderr, JSON alone on its stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from kvcomm.errors import UsageError
from kvcomm.trace.tables import plain_table
from kvcomm.trace.text import STEERING, plain


class _Harmless(Console):
    """Texts in it cannot steer the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text), style, control)


def console(*, stderr: bool = False) -> Console:
    """A console on stdout that leaves numbers and brackets in texts as they are."""
    return _Harmless(stderr=stderr, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    print(plain(text), flush=True)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on stdout, its columns named as `plain_table` takes them."""
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
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def complain(line: str) -> None:
    print(plain(" ".join(line.split("\n"))), file=sys.stderr, flush=True)
