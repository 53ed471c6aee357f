"""A sandbox for code that a model wrote: no network, no host files, little memory and time.

Three levels, the best that works is taken:

    bwrap      bubblewrap: namespaces of its own, a read-only system, one small writable folder
    landlock   the kernel's Landlock: reads the standard library, writes in a temporary folder; it
               sees which other files there are, not what is in them
    none       only where it is insisted on: all that the user may read or write is open

At every level seccomp refuses sockets, signals and new processes (at `none` where the kernel can),
and memory, time, output and files are limited. None keeps a program from lying about itself: code
that takes the tests apart in its own process, or finds the word that says it came to its end, can
pass them.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.bwrap import PROGRAM, bwrap_command
from kvcomm.tasks.scoring.seccomp import seccomp_filter
from kvcomm.tasks.scoring.watch import Limits, remove, watch

__all__ = ["Level", "Limits", "Ran", "Sandbox", "available", "find_sandbox"]

Level = Literal["bwrap", "landlock", "none"]
LAUNCH = Path(__file__).with_name("launch.py")
PYTHON = os.path.realpath(sys.executable)
LIMITS = Limits()


@dataclass(frozen=True)
class Ran:
    """How a program ended. `finished`: it came to its end, and did not leave in the middle."""

    finished: bool
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs at one level of protection."""

    level: Level

    def run(self, code: str, limits: Limits = LIMITS) -> Ran:
        """Run a program to its end, or to one of the limits. Nothing of it stays."""
        folder = Path(tempfile.mkdtemp(prefix="kvcomm-"))
        try:
            return self._run(code, limits, folder)
        finally:
            remove(folder)

    def _run(self, code: str, limits: Limits, folder: Path) -> Ran:
        program, work = folder / "program.py", folder / "work"
        program.write_text(code, encoding="utf-8", errors="replace")
        work.mkdir()
        alone = self.level == "bwrap"
        refused = seccomp_filter(platform.machine(), namespaces=alone)
        settings = {**asdict(limits), "level": self.level, "filter": refused.hex()}
        if alone:
            command = bwrap_command(program, LAUNCH, PYTHON, limits.file_mb)
        else:
            command = [PYTHON, "-I", "-S", str(LAUNCH)]
        process = subprocess.Popen(
            [*command, json.dumps(settings), PROGRAM if alone else str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=work,
            env={"PATH": "/usr/bin:/bin", "HOME": "/work", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        word = secrets.token_hex(16)
        ended = watch(process, word.encode(), limits, None if alone else work)
        out, err = (text.decode(errors="replace") for text in (ended.stdout, ended.stderr))
        finished = word in out and not ended.limit
        out = out.replace(word, "").rstrip("\n")
        said = [line.strip() for line in err.split("\n") if line.strip()]
        reason = f"left in the middle, exit {process.returncode}"
        if finished:
            reason = "finished"
        elif ended.limit or said:
            reason = ended.limit or said[-1][:200]
        return Ran(finished, process.returncode, out, err, ended.seconds, reason)


@cache
def failures() -> Mapping[Level, str]:
    """Why each level does not work here, "" where it does: each is tried, not only looked for."""
    found: dict[Level, str] = {}
    levels: tuple[Level, Level] = ("bwrap", "landlock")
    for level in levels:
        if level == "bwrap" and shutil.which("bwrap") is None:
            found[level] = "it is not installed"
            continue
        ran = Sandbox(level).run("print('it works')")
        found[level] = "" if ran.finished else ran.reason
    return found


def available() -> Sequence[Level]:
    """The levels that work here, best first."""
    return (*(level for level, failure in failures().items() if not failure), "none")


def find_sandbox(allow_unsandboxed: bool = False) -> Sandbox:
    """The best sandbox here. Raises `UsageError` when there is none, unless it is insisted on."""
    best = available()[0]
    if best == "none" and not allow_unsandboxed:
        why = "; ".join(f"{level}: {failure}" for level, failure in failures().items())
        raise UsageError(
            f"code cannot be run safely here ({why}): install bubblewrap 0.7 or newer (apt install "
            "bubblewrap), use Linux 6.2 or newer with Landlock, or insist with --allow-unsandboxed"
        )
    return Sandbox(best)
