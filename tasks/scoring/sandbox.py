"""A sandbox for code that a model wrote: no network, no host files, little memory and time.

Three levels, the best that works is taken:

    bwrap      bubblewrap: namespaces of its own, a read-only system, one small writable folder
    landlock   the kernel's Landlock: reads the standard library, writes in a temporary folder,
               which it can fill until its time is up
    none       limits on resources only, and only where it is insisted on

At the first two, seccomp refuses sockets, signals and new processes. Limits on memory, time, output
and files hold at every level. None of them keeps a program from lying about itself: code
that takes the tests apart in its own process can pass them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from kvcomm.errors import UsageError

Level = Literal["bwrap", "landlock", "none"]
LAUNCH = Path(__file__).with_name("launch.py")
PYTHON = os.path.realpath(sys.executable)


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds, memory of a process, processes and threads, bytes of output and files."""

    seconds: int = 10
    memory_mb: int = 512
    processes: int = 32
    output_bytes: int = 64 << 10
    file_mb: int = 16


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

    def run(self, code: str, limits: Limits = Limits()) -> Ran:
        """Run a program to its end, or to one of the limits. Nothing of it stays."""
        word = secrets.token_hex(16)
        with tempfile.TemporaryDirectory(prefix="kvcomm-") as name:
            folder = Path(name)
            (folder / "program.py").write_text(code, encoding="utf-8", errors="replace")
            work = folder / "work"
            work.mkdir()
            command = COMMANDS[self.level](folder, limits)
            inside = "/program.py" if self.level == "bwrap" else str(folder / "program.py")
            began = time.monotonic()
            process = subprocess.Popen(
                [*command, self.level, json.dumps(asdict(limits)), inside],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=work,
                env={"PATH": "/usr/bin:/bin", "HOME": "/work", "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
            return _watched(process, word, limits, began)


def _watched(process: subprocess.Popen[bytes], word: str, limits: Limits, began: float) -> Ran:
    """Feed and read a process until it ends; kill it, with all it started, at a limit."""
    over = threading.Event()
    streams: list[bytearray] = [bytearray(), bytearray()]

    def read(pipe: IO[bytes], into: bytearray) -> None:
        while data := os.read(pipe.fileno(), 1 << 16):
            room = limits.output_bytes + len(word) - len(into)
            into += data[: max(room, 0)]
            if len(data) > room:
                over.set()
                _kill(process)
                return

    assert process.stdin
    assert process.stdout
    assert process.stderr
    readers = [
        threading.Thread(target=read, args=pair, daemon=True)
        for pair in zip((process.stdout, process.stderr), streams, strict=True)
    ]
    for reader in readers:
        reader.start()
    late = False
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(word.encode() + b"\n")
            process.stdin.close()
        process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _kill(process)  # whatever it has left running
        process.wait()
        for reader in readers:
            reader.join(5)
        process.stdout.close()
        process.stderr.close()
    seconds = time.monotonic() - began
    out, err = (bytes(stream).decode(errors="replace") for stream in streams)
    finished = word in out and not late and not over.is_set()
    out = out.replace(word, "").rstrip("\n")
    if over.is_set():
        reason = f"more than {limits.output_bytes >> 10} KiB of output"
    elif late:
        reason = f"timed out after {limits.seconds} s"
    elif finished:
        reason = "finished"
    else:
        lines = [line for line in err.split("\n") if line.strip()]
        reason = (
            lines[-1].strip()[:200] if lines else f"left in the middle, exit {process.returncode}"
        )
    return Ran(finished, process.returncode, out, err, seconds, reason)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _bare(folder: Path, limits: Limits) -> list[str]:
    return [PYTHON, "-I", "-S", str(LAUNCH)]


def _bwrap(folder: Path, limits: Limits) -> list[str]:
    """Namespaces for everything; of the host only the system's libraries and Python, read-only."""
    binds = []
    for path in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives"):
        if os.path.islink(path):
            binds += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            binds += ["--ro-bind", path, path]
    if not sys.base_prefix.startswith("/usr"):
        binds += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    return [
        *("bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *binds,
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", str(limits.file_mb << 20), "--tmpfs", "/work"),
        *("--size", str(limits.file_mb << 20), "--tmpfs", "/tmp"),
        *("--ro-bind", str(folder / "program.py"), "/program.py"),
        *("--ro-bind", str(LAUNCH), "/launch.py", "--chdir", "/work"),
        *(PYTHON, "-I", "-S", "/launch.py"),
    ]


COMMANDS: dict[Level, Callable[[Path, Limits], list[str]]] = {
    "bwrap": _bwrap,
    "landlock": _bare,
    "none": _bare,
}


@cache
def available() -> Sequence[Level]:
    """The levels that work here, best first: each is tried, not only looked for."""
    found: list[Level] = []
    levels: tuple[Level, Level] = ("bwrap", "landlock")
    for level in levels:
        if level == "bwrap" and shutil.which("bwrap") is None:
            continue
        if Sandbox(level).run("print('it works')").finished:
            found.append(level)
    return (*found, "none")


def find_sandbox(allow_unsandboxed: bool = False) -> Sandbox:
    """The best sandbox here. Raises `UsageError` when there is none, unless it is insisted on."""
    best = available()[0]
    if best == "none" and not allow_unsandboxed:
        raise UsageError(
            "code cannot be run safely here: install bubblewrap (apt install bubblewrap), use a "
            "Linux kernel with Landlock, or insist with --allow-unsandboxed"
        )
    return Sandbox(best)
