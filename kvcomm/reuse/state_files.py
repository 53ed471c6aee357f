"""The files of what was learned: which there are, and which can go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvcomm.version import VERSION

FORMAT = "kvcomm-state-4"
LIBRARY = "kvcomm " + ".".join(VERSION.split(".")[:2])
# A version that reads other files keeps its own beside them.
VERSIONED = LIBRARY.replace(" ", "-") + "-" + FORMAT.rpartition("-")[2]
MANIFEST = "manifest.json"
OFFSETS = ".safetensors"
AUDITS = ".audits.json"
DAMAGED = ".damaged"
# A file that is being written has a name of its own, and is not written for so long, in seconds.
UNFINISHED = 3600.0


@dataclass(frozen=True)
class Learned:
    """What was learned of one template: its files, their bytes, and when they were last written.

    `written` is in seconds since the epoch.
    """

    template: str
    files: tuple[Path, ...]
    nbytes: int
    written: float


@dataclass(frozen=True)
class Folder:
    """What one model learned; `usable` by this version of kvcomm. `rest` is of use to nobody."""

    path: Path
    model: str
    library: str
    usable: bool
    templates: tuple[Learned, ...]
    rest: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all templates."""
        return sum(learned.nbytes for learned in self.templates)


def folders(root: Path) -> list[Folder]:
    """The state folders at `root` and up to two levels below it, by path.

    Links are not followed, and folders without a manifest of ours are no state folders.
    """
    found = []
    for path in (root, *sorted(root.glob("*")), *sorted(root.glob("*/*"))):
        linked = path != root and (path.is_symlink() or path.parent.is_symlink())
        if not linked and (folder := _folder(path)) is not None:
            found.append(folder)
    return found


def _folder(path: Path) -> Folder | None:
    try:
        value = json.loads((path / MANIFEST).read_text(encoding="utf-8-sig"))
        model, library, layout = (str(value[name]) for name in ("model", "library", "format"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not layout.startswith("kvcomm-state-"):
        return None
    usable = (library, layout) == (LIBRARY, FORMAT)
    return Folder(path, model, library, usable, tuple(_templates(path)), tuple(_rest(path)))


def _templates(folder: Path) -> Iterator[Learned]:
    files = [p for end in (OFFSETS, AUDITS) for p in sorted(folder.glob("[!.]*" + end))]
    for stem in sorted({p.name.removesuffix(OFFSETS).removesuffix(AUDITS) for p in files}):
        mine, nbytes, written = [], 0, 0.0
        for path in (folder / (stem + OFFSETS), folder / (stem + AUDITS)):
            with suppress(OSError):
                found = path.lstat()
                mine.append(path)
                nbytes, written = nbytes + found.st_size, max(written, found.st_mtime)
        if mine:  # another process may have removed it
            yield Learned(stem, tuple(mine), nbytes, written)


def _rest(folder: Path) -> Iterator[Path]:
    """Damaged files, and those that a process left unfinished."""
    yield from folder.glob("*" + DAMAGED)
    for path in (*folder.glob(f".*{OFFSETS}.*"), *folder.glob(".*.json.*")):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - UNFINISHED:
                yield path


def unwanted(
    found: list[Folder],
    *,
    older_than: float | None = None,
    keep: int | None = None,
    everything: bool = False,
) -> list[Path]:
    """The files of state folders that can go.

    Those are damaged, unfinished or another version's files; files of templates that learned
    nothing for `older_than` seconds; and of those that learned longest ago, so many that `keep`
    bytes are left in all. Or `everything`.
    """
    paths: list[Path] = []
    kept = []
    for folder in found:
        paths += folder.rest
        for learned in folder.templates:
            old = older_than is not None and learned.written < time.time() - older_than
            if everything or old or not folder.usable:
                paths += learned.files
            else:
                kept.append(learned)
    left = sum(learned.nbytes for learned in kept)
    for learned in sorted(kept, key=lambda learned: learned.written):
        if keep is None or left <= keep:
            break
        paths += learned.files
        left -= learned.nbytes
    return paths


def remove(paths: list[Path], found: list[Folder]) -> int:
    """Remove files, and the folders that hold nothing afterwards; returns the bytes.

    A file that is gone already is no error. Raises `OSError` for one that cannot be removed.
    """
    nbytes = 0
    for path in paths:
        with suppress(FileNotFoundError):
            size = path.lstat().st_size
            path.unlink()
            nbytes += size
    for folder in found:
        with suppress(OSError):
            if [path.name for path in folder.path.iterdir()] == [MANIFEST]:
                (folder.path / MANIFEST).unlink()
                folder.path.rmdir()
                folder.path.parent.rmdir()  # of a version, where it was the last
    return nbytes
