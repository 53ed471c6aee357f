"""`kvcomm tasks list`: the suites, and where their rows would come from here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kvcomm.cli import options
from kvcomm.cli.output import print_json, print_table
from kvcomm.extras import has

if TYPE_CHECKING:
    from kvcomm.tasks import Suite

app = typer.Typer(no_args_is_help=True, help="Look at task suites.")


@app.callback()
def tasks() -> None:
    """Look at task suites."""


@app.command("list")
@options.takes()
def list_suites(*, data: Path | None = None, json: bool = False) -> None:
    """The suites that `kvcomm eval` takes, and where their rows come from."""
    from kvcomm.tasks import SUITES

    found = [{"name": s.name, "about": s.about, "rows": _source(s, data)} for s in SUITES.values()]
    if json:
        print_json({"suites": found})
        return
    own = [
        ("FILE.jsonl", "your own: `input` and `target` in every line", "the file"),
        ("FILE.py[:NAME]", "your own: a `Suite`", "as it says"),
    ]
    print_table(("suite", "~what it is", "rows"), [*(entry.values() for entry in found), *own])


def _source(suite: Suite, data: Path | None) -> str:
    """Where the suite's rows would be read from."""
    from kvcomm.tasks.rows import data_folder

    folder = data_folder(data)
    if folder and (folder / f"{suite.name}.jsonl").exists():
        return "the folder"
    if suite.shipped:
        return "kvcomm"
    if suite.hub and has("datasets"):
        return "the hub"
    return "--data or the hub"
