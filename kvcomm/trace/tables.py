"""Tables without lines, as commands and traces are shown in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


def plain_table(*columns: str, **look: Any) -> Table:
    """A table; `>` before a column's name sets it right, `~` lets it be wrapped."""
    known = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0), "header_style": "bold"}
    table = Table(**known | look)
    for name in columns:
        right, wrapped = name.startswith(">"), name.startswith("~")
        table.add_column(
            name.lstrip(">~"),
            justify="right" if right else "left",
            no_wrap=not wrapped,
            overflow="fold" if wrapped else "ellipsis",
        )
    return table


def ruled_table(*columns: str, **look: Any) -> Table:
    """The same, denser, with a line below the heads and room in the first column."""
    known = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = plain_table(*columns, **known | look)
    table.columns[0].min_width = 6
    return table


def facts(
    rows: Iterable[tuple[str, str]], style: str = "bold", text: str = "", padding: int = 2
) -> Table:
    """Names and what they are, which is wrapped under its own beginning."""
    grid = Table.grid(padding=(0, padding))
    grid.add_column(style=style, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value, style=text))
    return grid
