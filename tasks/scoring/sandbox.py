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
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.seccomp import seccomp_filter

Level = Literal["bwrap", "landlock", "none"]
LAUNCH = Path(__file__).with_name("launch.py")
PYTHON = os.path.realpath(sys.executable)
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
TICK = 0.1  # seconds between two looks at what a program has written
ENTRIES = 1000  # files and folders it may make
WORD = 32  # letters of the word that a program says when it came to its end


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds, memory of a process, processes and threads, bytes of output and files."""

    seconds: int = 10
    memory_mb: int = 512
    processes: int = 32
    output_bytes: int = 64 << 10
    file_mb: int = 16


LIMITS = Limits()


@dataclass(frozen=True)
class Ran:
    """How a program ended. `finished`: it came to its end, and did not leave in the middle."""

    finished: bool
    stdout: str
    reason: str


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs at one level of protection."""

    level: Level

    def run(self, code: str, limits: Limits = LIMITS) -> Ran:
        """Run a program to its end, or to one of the limits. Nothing of it stays."""
        folder = Path(tempfile.mkdtemp(prefix="kvcomm-"))
        try:
            program = folder / "program.py"
            program.write_text(code, encoding="utf-8", errors="replace")
            (folder / "work").mkdir()
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                return self._run(program, limits, (out, err))
        finally:
            _remove(folder)

    def _run(self, program: Path, limits: Limits, streams: tuple[IO[bytes], IO[bytes]]) -> Ran:
        alone, work = self.level == "bwrap", program.with_name("work")
        refused = seccomp_filter(platform.machine(), namespaces=alone)
        settings = json.dumps({**asdict(limits), "level": self.level, "filter": refused.hex()})
        command = [PYTHON, "-I", "-S", str(LAUNCH), settings, str(program)]
        if alone:
            command = bwrap_command(program, settings, limits.file_mb)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=streams[0],
            stderr=streams[1],
            bufsize=0,
            cwd=work,
            env={"PATH": "/usr/bin:/bin", "HOME": "/work", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        word = secrets.token_hex(WORD // 2)
        try:
            assert process.stdin
            with suppress(BrokenPipeError), process.stdin:  # it may be over already
                process.stdin.write(word.encode())
            limit = _watch(process, limits, streams, None if alone else work)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in streams:
            stream.seek(0)
        size = limits.output_bytes + WORD
        out, err = (stream.read(size).decode(errors="replace") for stream in streams)
        finished = word in out and not limit
        said = [line.strip() for line in err.split("\n") if line.strip()]
        why = limit or (said or [f"left in the middle, exit {process.returncode}"])[-1][:200]
        return Ran(finished, out.replace(word, "").rstrip("\n"), "finished" if finished else why)


def bwrap_command(program: Path, settings: str, megabytes: int) -> list[str]:
    """The command that launches a program with read-only libraries and a small folder only.

    Namespaces of its own for everything: users, processes, network, mounts. All that can be written
    is one file system in memory of `megabytes`. There is no /proc: for root, the kernel's settings
    could be written in it. Needs bubblewrap 0.7 (`--size`).
    """
    seen = []
    for path in SYSTEM:
        if os.path.islink(path):
            seen += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            seen += ["--ro-bind", path, path]
    for path in sorted({sys.base_prefix, os.path.realpath(sys.base_prefix)}):
        if not path.startswith("/usr"):
            seen += ["--ro-bind", path, path]
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user"),
        *("--die-with-parent", "--new-session", "--hostname", "sandbox"),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *seen,
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(megabytes << 20), "--tmpfs", "/work", "--symlink", "/work", "/tmp"),
        *("--ro-bind", str(program), "/program.py", "--ro-bind", str(LAUNCH), "/launch.py"),
        *("--remount-ro", "/", "--chdir", "/work"),
        *(PYTHON, "-I", "-S", "/launch.py", settings, "/program.py"),
    ]


def _watch(
    process: subprocess.Popen[bytes],
    limits: Limits,
    streams: Sequence[IO[bytes]],
    work: Path | None,
) -> str:
    """Wait until a process has ended, or has come to the limit that is returned.

    `work` is the folder that it writes to, where nothing else bounds that for a moment.
    """
    deadline, ended = time.monotonic() + limits.seconds, False
    while not ended and (left := deadline - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            ended = process.wait(min(TICK, left)) is not None
        if any(os.fstat(s.fileno()).st_size > limits.output_bytes + WORD for s in streams):
            return f"more than {limits.output_bytes >> 10} KiB of output"
        if work and (excess := _excess(work, limits.file_mb)):
            return excess
    return "" if ended else f"timed out after {limits.seconds} s"


def _excess(folder: Path, megabytes: int) -> str:
    """What a folder holds too much of: bytes, or files and folders."""
    size, seen, folders = 0, 0, [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                seen += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > megabytes << 20:
                    return f"more than {megabytes} MB of files"
                if seen > ENTRIES:
                    return f"more than {ENTRIES} files"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return ""


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):  # a program leaves folders of any depth, and locks them
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, folder], check=False, stderr=subprocess.DEVNULL)


@cache
def failures() -> Mapping[Level, str]:
    """Why each level does not work here, "" where it does: each is tried, not only looked for."""
    found: dict[Level, str] = {"bwrap": "it is not installed", "landlock": ""}
    for level in found:
        if level != "bwrap" or shutil.which("bwrap"):
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
