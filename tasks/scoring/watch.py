"""A process that is not trusted: read while it runs, ended at a limit, and nothing of it kept."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TICK = 0.1  # seconds between two looks at what gives no sign
ENTRIES = 1000  # files and folders it may make


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds, memory of a process, processes and threads, bytes of output and files."""

    seconds: int = 10
    memory_mb: int = 512
    processes: int = 32
    output_bytes: int = 64 << 10
    file_mb: int = 16


@dataclass(frozen=True)
class Ended:
    """`limit` names the limit it was ended at, and is empty when it ended by itself."""

    stdout: bytes
    stderr: bytes
    seconds: float
    limit: str


def watch(
    process: subprocess.Popen[bytes], word: bytes, limits: Limits, folder: Path | None
) -> Ended:
    """Hand a process a word, read what it writes until it ends, or end it at a limit.

    The process leads a session of its own, which is killed in every case. `folder` is where it
    writes, if nothing else bounds that; it is looked at now and then, so it can hold more for a
    moment. Of either stream at most the limit and the word are kept.
    """
    assert process.stdin, "the word is handed over on it"
    assert process.stdout, "it is read"
    assert process.stderr, "it is read"
    began = time.monotonic()
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    try:
        # It may be over already; the pipe is closed all the same.
        with suppress(BrokenPipeError):
            process.stdin.write(word)
        with suppress(BrokenPipeError):
            process.stdin.close()
        limit = _read(process, kept, len(word), limits, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
    seconds = time.monotonic() - began
    return Ended(bytes(kept[process.stdout]), bytes(kept[process.stderr]), seconds, limit)


def _read(
    process: subprocess.Popen[bytes],
    kept: dict[IO[bytes], bytearray],
    extra: int,
    limits: Limits,
    folder: Path | None,
) -> str:
    """Read the streams until the process has ended, or has come to the limit that is returned."""
    looked = time.monotonic()
    deadline = looked + limits.seconds
    room = limits.output_bytes + extra
    with selectors.DefaultSelector() as selector:
        for stream, data in kept.items():
            selector.register(stream, selectors.EVENT_READ, data)
        while (now := time.monotonic()) < deadline:
            pause = min(deadline - now, TICK)
            if folder and now - looked > TICK:
                looked = now
                if excess := _excess(folder, limits.file_mb):
                    return excess
            if not selector.get_map():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(pause)
                    return ""
                continue
            ended = process.poll() is not None  # asked first: its last words come before its end
            ready = selector.select(0 if ended else pause)
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                key.data.extend(piece[: room - len(key.data)])
                if not piece:
                    selector.unregister(key.fileobj)
                elif len(key.data) == room:
                    return f"more than {limits.output_bytes >> 10} KiB of output"
            if not ready and ended:
                return ""  # what still holds its streams open has nothing to say
    return f"timed out after {limits.seconds} s"


def _excess(folder: Path, megabytes: int) -> str:
    """What a folder holds too much of: bytes, or files and folders."""
    size = seen = 0
    folders = [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > megabytes << 20:
                    return f"more than {megabytes} MB of files"
                if seen > ENTRIES:
                    return f"more than {ENTRIES} files"
    return ""


def remove(folder: Path) -> None:
    """Delete a folder, however deep: what lies in a folder of it is lifted up first."""
    lifted, count = secrets.token_hex(8), 0
    with suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):
                    os.rename(inner.path, folder / f"{lifted}-{count}")
                    count += 1
                os.rmdir(entry.path)
        os.rmdir(folder)
