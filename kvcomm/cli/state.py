"""`kvcomm state list|prune`: what was learned of which models, and removing it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kvcomm.cli import options
from kvcomm.cli.output import print_json, print_table, say
from kvcomm.errors import StateError, UsageError
from kvcomm.trace.text import megabytes

if TYPE_CHECKING:
    from kvcomm.reuse.state_files import Folder

app = typer.Typer(no_args_is_help=True, help="Look at what was learned, and remove it.")
STATE = options.Option("DIR", "Another folder.", shown="the user's cache")


@app.command("list")
@options.takes(state=STATE)
def list_state(*, state: Path | None = None, json: bool = False) -> None:
    """What was learned, model by model."""
    found = _found(state)
    if json:
        print_json({"bytes": sum(f.nbytes for f in found), "folders": [_json(f) for f in found]})
        return
    if not found:
        say(f"Nothing was learned yet in {_root(state)}.")
        return
    print_table(("model", ">version", ">templates", ">size", ">last learned"), map(_row, found))
    say(f"\n{megabytes(sum(folder.nbytes for folder in found))} in {_root(state)}")
    if any(not folder.usable or folder.rest for folder in found):
        say("Some of it is of no use to this version: kvcomm state prune")


@app.command("prune")
@options.takes(
    state=STATE,
    older_than=options.Option(
        "DAYS", "Also what has learned nothing for so long.", within=(0, math.inf)
    ),
    keep=options.Option("SIZE", "Also the oldest, until so much is left."),
)
def prune(*, state: Path | None = None, what: options.PruneOptions, json: bool = False) -> None:
    """Remove what other versions of kvcomm learned, and files that are damaged."""
    from kvcomm.reuse.state_files import remove, unwanted

    found = _found(state)
    paths = unwanted(found, **what.limits())
    try:
        size = sum(path.lstat().st_size for path in paths)
        removed = size if what.dry_run else remove(paths, found)
    except OSError as error:
        raise StateError(f"cannot remove what was learned: {error}") from error
    what.report(paths, removed, "file", json)


def _root(state: Path | None) -> Path:
    from kvcomm.engine.models import cache_dir

    return cache_dir() / "state" if state is None else state


def _found(state: Path | None) -> list[Folder]:
    """The state folders. Raises `UsageError` for a folder of the user's that is not there."""
    from kvcomm.reuse.state_files import folders

    if state is not None and not state.is_dir():
        raise UsageError(f"--state {state}: there is no such folder")
    return folders(_root(state))


def _row(folder: Folder) -> list[str]:
    last = max((t.written for t in folder.templates), default=0.0)
    when = f"{datetime.fromtimestamp(last):%Y-%m-%d %H:%M}" if last else ""
    version = folder.library.removeprefix("kvcomm ") + ("" if folder.usable else ", unused")
    return [folder.model, version, str(len(folder.templates)), megabytes(folder.nbytes), when]


def _json(folder: Folder) -> dict[str, object]:
    return {
        "path": str(folder.path),
        "model": folder.model,
        "library": folder.library,
        "usable": folder.usable,
        "bytes": folder.nbytes,
        "templates": [
            {
                "template": learned.template,
                "bytes": learned.nbytes,
                "written": datetime.fromtimestamp(learned.written).isoformat(timespec="seconds"),
            }
            for learned in folder.templates
        ],
    }
