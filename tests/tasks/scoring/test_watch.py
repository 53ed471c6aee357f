"""Processes that are read until they end, and what they leave."""

from __future__ import annotations

import os
import selectors
import subprocess
from pathlib import Path

import pytest

from kvcomm.tasks.scoring.watch import Limits, remove, watch


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["sh", "-c", command],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=folder,
        bufsize=0,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("command", "stdout", "limit"),
    [
        ("cat", b"word", ""),
        ("echo out; echo err >&2", b"out\n", ""),
        ("sleep 20 & echo out", b"out\n", ""),  # its child keeps the streams open
        ("sleep 20", b"", "timed out after 1 s"),
        ("exec >&- 2>&-; sleep 20", b"", "timed out after 1 s"),
        ("while :; do echo word; done", b"word\n" * 205 + b"wor", "more than 1 KiB of output"),
        ("head -c 3000000 /dev/zero > x; sleep 20", b"", "more than 1 MB of files"),
    ],
)
def test_a_process_ends_or_is_ended(
    tmp_path: Path, command: str, stdout: bytes, limit: str
) -> None:
    limits = Limits(seconds=1, output_bytes=1 << 10, file_mb=1)
    ended = watch(start(command, tmp_path), b"word", limits, tmp_path)
    assert (ended.stdout, ended.limit) == (stdout, limit)
    assert ended.seconds < 3


def test_a_folder_of_any_depth_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(2000):  # longer than any path can be
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.mkdir("locked", 0, dir_fd=here)
    os.close(here)
    remove(folder)
    assert not folder.exists()
    assert (outside / "kept").exists()


def test_last_words_are_heard_however_late_one_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program ends between a look at its output and a look at itself."""
    process = start("cat", tmp_path)

    class Late(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            first = process.returncode is None
            process.wait()
            return [] if first else super().select(timeout)

    monkeypatch.setattr(selectors, "DefaultSelector", Late)
    ended = watch(process, b"word", Limits(), None)
    assert (ended.stdout, ended.limit) == (b"word", "")
