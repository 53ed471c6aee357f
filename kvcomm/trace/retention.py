"""Retention: of the run folders that nobody named, the newest are kept."""

from __future__ import annotations

import re
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

from kvcomm.errors import TraceError, UsageError
from kvcomm.trace.read import read_ends, read_start
from kvcomm.trace.record import TRACE_FILE

# How many are kept by default.
KEPT = 100
# `new_run_folder` makes such names: whoever renames a folder keeps it.
NAMED = re.compile(r"\d{8}-\d{6}-[\w.-]+")
SECOND = len("20250102-030405")
# A run that has written nothing for so long, and has no end, was killed.
DEAD_S = 30 * 24 * 3600.0


class Retention:
    """Deletes old run folders below `root`, so that the newest `keep` remain; None keeps all.

    What goes was made by kvcomm under a name that it chose, holds a finished trace (or one that has
    not grown for 30 days) and nothing else. Everything else stays and does not count: folders named
    by `out`, renamed ones, those with a file of yours in them, links. Runs under way count, and
    stay. Several processes may tidy at once. Nothing that fails here harms a run.
    """

    def __init__(self, root: Path, keep: int | None) -> None:
        if keep is not None and keep < 1:
            raise UsageError(f"keep_runs {keep!r} must be at least 1, or None to keep all")
        self._root = root
        self._keep = keep
        self._automatic: dict[str, bool] = {}  # what first lines say; each is read once
        self._tidying = threading.Lock()

    def tidy(self) -> list[Path]:
        """Delete what is too old once another run begins, and say what that was."""
        if self._keep is None or not self._tidying.acquire(blocking=False):
            return []
        try:
            return self._tidy(self._keep)
        except OSError:
            return []
        finally:
            self._tidying.release()

    def _tidy(self, keep: int) -> list[Path]:
        found = [path.name for path in self._root.iterdir() if NAMED.fullmatch(path.name)]
        if len(found) < keep:  # most often, and without a look into any of them
            return []
        self._automatic = {name: self._automatic[name] for name in found if name in self._automatic}
        ours = sorted(filter(self._is_ours, found), key=self._age, reverse=True)
        return [self._root / name for name in ours[keep - 1 :] if _delete(self._root / name)]

    def _age(self, name: str) -> tuple[str, int]:
        """Names begin with the second; of one second the trace that was written last is newest."""
        with suppress(OSError):
            return name[:SECOND], (self._root / name / TRACE_FILE).stat().st_mtime_ns
        return name[:SECOND], 0

    def _is_ours(self, name: str) -> bool:
        if not _holds_a_trace_alone(self._root / name):
            return False
        if name not in self._automatic:
            with suppress(TraceError):  # a run that has just begun, or none
                self._automatic[name] = read_start(self._root / name / TRACE_FILE).automatic
        return self._automatic.get(name, False)


def _delete(folder: Path) -> bool:
    """Delete the trace of a run that is over, and its folder."""
    trace = folder / TRACE_FILE
    # Another process may be faster, or it may not be deleted.
    with suppress(TraceError, OSError):
        over = read_ends(trace).finished or time.time() - trace.stat().st_mtime > DEAD_S
        if over and _holds_a_trace_alone(folder):
            trace.unlink()
            folder.rmdir()
            return True
    return False


def _holds_a_trace_alone(folder: Path) -> bool:
    """Whether this is a folder with a trace file and nothing else, none of them a link."""
    with suppress(OSError):
        if stat.S_ISDIR(folder.lstat().st_mode):
            found = {path.name: path.lstat().st_mode for path in folder.iterdir()}
            return list(found) == [TRACE_FILE] and stat.S_ISREG(found[TRACE_FILE])
    return False
