"""The ends of a trace: what is read of a large file, and what is said of a broken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvcomm.errors import TraceError
from kvcomm.trace import ends, read, read_trace
from kvcomm.trace.ends import read_ends, read_start
from tests.trace import traces


def large(folder: Path, megabytes: int = 8) -> Path:
    """A whole trace with so much between its first lines and its last."""
    path = traces.whole(folder).path
    *lines, last = path.read_bytes().splitlines(keepends=True)
    text = json.dumps({"kind": "text", "v": 2, "t": 1.0, "id": 9, "text": "x" * 10_000})
    path.write_bytes(b"".join([*lines, (text.encode() + b"\n") * (100 * megabytes), last]))
    return path


def test_the_ends_are_those_of_the_whole(tmp_path: Path) -> None:
    path = large(tmp_path)
    run, found = read_trace(path), read_ends(path)
    assert (found.started, found.finished) == (run.started, run.finished)
    assert found.calls == sum(1 for view in run.calls if view.call) == 3


def test_the_middle_of_a_large_trace_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path)
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({**json.loads(lines[-1]), "calls": 3})
    path.write_text("\n".join(lines) + "\n")
    taken = [0]

    class Counted:
        """A file that counts what is read of it."""

        def __init__(self, file: Any) -> None:
            self._file = file
            self.seek, self.tell = file.seek, file.tell

        def read(self, size: int) -> bytes:
            data = self._file.read(size)
            taken[0] += len(data)
            return data

        def readline(self, size: int) -> bytes:
            line = self._file.readline(size)
            taken[0] += len(line)
            return line

    first, last = ends._first, ends._last
    monkeypatch.setattr(ends, "_first", lambda path, file: first(path, Counted(file)))
    monkeypatch.setattr(ends, "_last", lambda file: last(Counted(file)))
    monkeypatch.setattr(ends, "whole_lines", ends.whole_lines)
    assert read_ends(path).calls == 3
    assert path.stat().st_size > 8_000_000
    assert taken[0] < 2 * ends.WINDOW


@pytest.mark.parametrize("finished", [True, False], ids=["an older one", "cut off"])
def test_where_calls_have_to_be_counted_nothing_between_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    path = large(tmp_path)
    if not finished:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1])[:-5])
    parsed = []
    real = read.parse_event
    monkeypatch.setattr(read, "parse_event", lambda line: parsed.append(line) or real(line))
    found = read_ends(path)
    assert bool(found.finished) == finished
    assert found.calls == 3
    assert len(parsed) < 20


def test_texts_that_look_like_calls_are_not_counted(tmp_path: Path) -> None:
    path = traces.cut_off(tmp_path).path
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    first["inputs"] = {"kind": "call", "task": '"kind":"call"'}
    lines[0] = json.dumps(first)
    lines.append(json.dumps({"kind": "text", "v": 2, "id": 7, "text": '"kind":"call" ' * 30}))
    path.write_text("\n".join(lines) + "\n")
    assert read_ends(path).calls == 1


@pytest.mark.parametrize(
    "tail", [b"", b'{"kind": "end", "v": 2', b"\n\n\n", b"\xff\x00\n" * 2000, b"[" * 100_000]
)
def test_what_stands_behind_the_last_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    path = traces.whole(tmp_path).path
    path.write_bytes(path.read_bytes() + tail)
    assert read_ends(path).finished == read_trace(path).finished is not None


def test_a_last_line_longer_than_the_window_is_found(tmp_path: Path) -> None:
    path = traces.whole(tmp_path).path
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({**json.loads(lines[-1]), "answer": "y" * 5 * ends.WINDOW})
    path.write_text("\n".join(lines) + "\n")
    finished = read_ends(path).finished
    assert finished is not None
    assert len(finished.answer or "") == 5 * ends.WINDOW


@pytest.mark.parametrize("content", [b"", b"\n", b"nothing\n", b'{"kind":"end"}\n'])
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    for reads in (read_ends, read_start):
        with pytest.raises(TraceError, match="does not begin with a `run` event"):
            reads(path)
    with pytest.raises(TraceError, match="cannot read"):
        read_ends(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="not a file"):
        read_ends(tmp_path)
