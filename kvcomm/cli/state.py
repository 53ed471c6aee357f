"""`kvcomm state list|prune`: what was learned of which models, and removing it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcomm.cli import options
from kvcomm.cli.output import print_json, print_table, say
from kvcomm.errors import StateError, UsageError
from kvcomm.trace.text import megabytes, plural

if TYPE_CHECKING:
    from kvcomm.reuse.state_files import Folder

app = typer.Typer(no_args_is_help=True, help="Look at what was learned, and remove it.")
DAY_S = 24 * 3600
Where = Annotated[
    Path | None, options.option("DIR", "Another folder.", "--state", shown="the user's cache")
]


@app.command("list")
def list_state(state: Where = None, json: options.Json = False) -> None:
    """What was learned, model by model."""
    found = _found(state)
    if json:
        print_json({"bytes": sum(f.nbytes for f in found), "folders": [_json(f) for f in found]})
        return
    if not found:
        say(f"Nothing was learned yet in {_root(state)}.")
        return
    rows = []
    for folder in found:
        last = max((t.written for t in folder.templates), default=0.0)
        when = datetime.fromtimestamp(last).strftime("%Y-%m-%d %H:%M") if last else ""
        library = folder.library.removeprefix("kvcomm ")
        version = library if folder.usable else f"{library}, unused"
        count, size = str(len(folder.templates)), megabytes(folder.nbytes)
        rows.append((folder.model, version, count, size, when))
    print_table(("model", ">version", ">templates", ">size", ">last learned"), rows)
    say(f"\n{megabytes(sum(folder.nbytes for folder in found))} in {_root(state)}")
    if any(not folder.usable or folder.rest for folder in found):
        say("Some of it is of no use to this version: kvcomm state prune")


@app.command("prune")
def prune(
    state: Where = None,
    older_than: Annotated[
        float | None,
        options.option("DAYS", "Also what has learned nothing for so long.", "--older-than", min=0),
    ] = None,
    keep: Annotated[
        str | None, options.option("SIZE", "Also the oldest, until so much is left.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: options.Json = False,
) -> None:
    """Remove what other versions of kvcomm learned, and files that are damaged."""
    from kvcomm.reuse.state_files import remove, unwanted

    if older_than is not None and not math.isfinite(older_than):
        raise UsageError(f"--older-than {older_than} is no number of days")
    found = _found(state)
    age = None if older_than is None else older_than * DAY_S
    room = options.size(keep, "--keep")
    paths = unwanted(found, older_than=age, keep=room, everything=everything)
    try:
        size = sum(path.lstat().st_size for path in paths)
        removed = 0 if dry_run else remove(paths, found)
    except OSError as error:
        raise StateError(f"cannot remove what was learned: {error}") from error
    if json:
        listed = [str(path) for path in paths]
        print_json({"files": listed, "bytes": size if dry_run else removed, "removed": not dry_run})
    elif not paths:
        say("Nothing to remove.")
    else:
        what = f"would go: {megabytes(size)}" if dry_run else f"gone: {megabytes(removed)}"
        say(f"{plural(len(paths), 'file')} {what}")


def _root(state: Path | None) -> Path:
    from kvcomm.engine.models import cache_dir

    return cache_dir() / "state" if state is None else state


def _found(state: Path | None) -> list[Folder]:
    """The state folders. Raises `UsageError` for a folder of the user's that is not there."""
    from kvcomm.reuse.state_files import folders

    if state is not None and not state.is_dir():
        raise UsageError(f"--state {state}: there is no such folder")
    return folders(_root(state))


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
