"""`kvcomm cache list|prune`: the KV of texts that is kept on disk, and removing it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import typer

from kvcomm.cli import options
from kvcomm.cli.output import print_json, print_table, say
from kvcomm.errors import UsageError
from kvcomm.trace.text import megabytes

app = typer.Typer(no_args_is_help=True, help="Look at the KV that is kept on disk, and remove it.")
FOLDER = options.Option("DIR", "Another folder.", shown="the user's cache")


@app.command("list")
@options.takes(kv_cache=FOLDER)
def list_cache(*, kv_cache: Path | None = None, json: bool = False) -> None:
    """What is kept, model by model."""
    from kvcomm.engine.kv_cache import caches, root

    found = caches(_folder(kv_cache))
    total = sum(one.nbytes for one in found)
    if json:
        folders = [
            {
                "path": str(one.path),
                "model": one.model,
                "texts": len(one.files),
                "bytes": one.nbytes,
                "used": _day(one.files[-1][2], "T") if one.files else None,
            }
            for one in found
        ]
        print_json({"bytes": total, "folders": folders})
    elif not found:
        say(f"No KV is kept in {kv_cache or root()} yet.")
    else:
        rows = [
            (
                one.model,
                f"{len(one.files):,}",
                megabytes(one.nbytes),
                _day(one.files[-1][2]) if one.files else "",
            )
            for one in found
        ]
        print_table(("model", ">texts", ">size", ">last used"), rows)
        say(f"\n{megabytes(total)} in {kv_cache or root()}")


@app.command("prune")
@options.takes(kv_cache=FOLDER)
def prune(*, kv_cache: Path | None = None, what: options.PruneOptions, json: bool = False) -> None:
    """Remove KV that was not used for long, or what is over a size."""
    from kvcomm.engine.kv_cache import caches, unwanted

    limits = what.limits()
    if what.older_than is None and what.keep is None and not what.everything:
        raise UsageError("say what is to go: --older-than DAYS, --keep SIZE or --all")
    gone = unwanted(caches(_folder(kv_cache)), **limits)
    if not what.dry_run:
        for path in gone:
            path.unlink(missing_ok=True)
    what.report(gone, sum(gone.values()), "text", json)


def _folder(path: Path | None) -> Path | None:
    """A folder of the user's. Raises `UsageError` for one that is not there."""
    if path is not None and not path.is_dir():
        raise UsageError(f"--kv-cache {path}: there is no such folder")
    return path


def _day(when: float, between: str = " ") -> str:
    return f"{datetime.fromtimestamp(when):%Y-%m-%d{between}%H:%M}"
