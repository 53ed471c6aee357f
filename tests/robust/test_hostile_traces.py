"""Traces that somebody else wrote: shown as far as they can be read, in bounded time and memory."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trace.traces import whole

# What must not reach a terminal: controls but newlines, overrides of direction, half characters.
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e[bold]x[/][/nope] :smile:"
# What follows the first line of a trace, and how many of these lines are no events.
LINES: dict[str, tuple[bytes, int]] = {
    "deeply nested": (b'{"kind": "error", "node": ' + b"[" * 100_000, 1),
    "huge integer": (
        b'{"kind": "error", "v": ' + b"9" * 100_000 + b', "node": "a", "error": "e"}',
        1,
    ),
    "not a number": (
        b'{"kind": "retry", "node": "a", "attempt": 1, "error": "", "wait_s": NaN}',
        1,
    ),
    "infinite": (b'{"kind": "retry", "node": "a", "attempt": 1, "error": "", "wait_s": 1e999}', 1),
    "wrong types": (b'{"kind": "node", "node": {}, "attempt": "x", "prompt_capacity": []}', 1),
    "no object": (b'[1, 2]\nnull\n"text"', 3),
    "duplicate keys": (
        b'{"kind": "x", "kind": "error", "node": "b", "node": null, "error": "e"}',
        0,
    ),
    "binary": (bytes(range(11, 256)) * 40, 1),
    "long": (b'{"kind": "error", "node": null, "error": "' + b"x" * 40_000_000 + b'"}', 1),
}
COMMANDS = {
    "show": ("trace", "show", "RUN"),
    "segments": ("trace", "show", "RUN", "--segments"),
    "text": ("trace", "show", "RUN", "--text"),
    "json": ("trace", "show", "RUN", "--json"),
    "list": ("trace", "list"),
    "diff": ("trace", "diff", "RUN", "RUN"),
    "csv": ("trace", "export", "RUN", "--to", "csv", "--force"),
    "perfetto": ("trace", "export", "RUN", "--to", "perfetto", "--force"),
    "otel": ("trace", "export", "RUN", "--to", "otel", "--force"),
    "html": ("trace", "export", "RUN", "--to", "html", "--force"),
    "parquet": ("trace", "export", "RUN", "--to", "parquet", "--force"),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A run's trace at `runs/one`."""
    whole(tmp_path / "runs" / "one")
    return tmp_path / "runs" / "one" / "trace.jsonl"


@pytest.fixture
def memory() -> Iterator[None]:
    """At most a gigabyte more than is in use."""
    if sys.platform != "linux":
        pytest.skip("needs RLIMIT_DATA and /proc")
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("what", LINES)
def test_a_line_that_is_no_event_is_passed_over(
    cli: Callable, trace: Path, memory: None, what: str
) -> None:
    lines, skipped = LINES[what]
    first, rest = trace.read_bytes().split(b"\n", 1)
    trace.write_bytes(b"\n".join([first, lines, rest]))
    value = json.loads(cli("trace", "show", "one", "--json").out)
    assert value["skipped_lines"] == skipped
    assert value["status"] == "ok"
    for name in ("show", "list", "csv"):
        assert cli(*(w.replace("RUN", "one") for w in COMMANDS[name])).code == 0


@pytest.mark.parametrize("first", [line for line, _ in LINES.values()], ids=list(LINES))
def test_a_file_of_that_is_no_trace(cli: Callable, trace: Path, memory: None, first: bytes) -> None:
    trace.write_bytes(first)
    ended = cli("trace", "show", "one")
    assert ended.code == 2
    assert "is not a trace" in ended.err
    assert "unreadable" in cli("trace", "list").out


@pytest.mark.parametrize("kind", ["fifo", "endless", "folder", "dangling"])
def test_what_is_no_file_is_not_opened(cli: Callable, trace: Path, kind: str) -> None:
    trace.unlink()
    if kind == "fifo":
        os.mkfifo(trace)
    elif kind == "folder":
        trace.mkdir()
    else:
        trace.symlink_to("/dev/zero" if kind == "endless" else "nowhere")
    for name in ("show", "diff", "csv"):
        ended = cli(*(w.replace("RUN", "one") for w in COMMANDS[name]))
        assert ended.code == 2
        assert "no trace at 'one'" in ended.err
    assert cli("trace", "tail", "one").code == 2
    listed = cli("trace", "list")
    assert listed.code == 0
    assert "unreadable" in listed.out or kind == "dangling"


def test_a_link_to_a_trace_is_followed(cli: Callable, trace: Path) -> None:
    moved = trace.rename(trace.parent.parent / "moved.jsonl")
    trace.symlink_to(moved)
    assert cli("trace", "show", "one").code == 0


def test_an_export_does_not_write_through_a_link(cli: Callable, trace: Path) -> None:
    target = trace.parent.parent.parent / "elsewhere.csv"
    (trace.parent / "calls.csv").symlink_to(target)
    assert cli("trace", "export", "one", "--to", "csv").code == 2
    assert not target.exists()


def hostile(value: object) -> object:
    """The same JSON with an attack behind every free text."""
    if isinstance(value, dict):
        fixed = ("kind", "segment", "way", "stop", "status", "started")
        return {k: v if k in fixed else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


@pytest.mark.parametrize("command", [*COMMANDS, "tail"])
def test_texts_of_a_trace_do_not_steer_the_terminal(
    cli: Callable, trace: Path, command: str
) -> None:
    lines = [json.dumps(hostile(json.loads(line))) for line in trace.read_text().splitlines()]
    trace.write_text("\n".join(lines) + "\n")
    argv = [w.replace("RUN", "one") for w in COMMANDS.get(command, ("trace", "tail", "RUN"))]
    ended = cli(*argv)
    assert ended.code == 0, ended.err
    assert not STEERING.search(ended.out + ended.err)
    if command in ("show", "text", "tail", "json"):
        assert "[bold]x[/][/nope]" in ended.out


def test_errors_do_not_steer_the_terminal(cli: Callable, trace: Path) -> None:
    for argv in (["show", ATTACK], ["show", "one", "--node", ATTACK], ["list", "--runs", ATTACK]):
        ended = cli("trace", *argv)
        assert not STEERING.search(ended.out + ended.err)


def test_counts_that_add_up_to_more_than_a_column_holds(cli: Callable, trace: Path) -> None:
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line["computed"] = 2**63 - 1
    trace.write_text("\n".join(map(json.dumps, lines)) + "\n")
    for name in ("show", "segments", "csv", "html"):
        assert cli(*(w.replace("RUN", "one") for w in COMMANDS[name])).code == 0
    ended = cli("trace", "export", "one", "--to", "parquet")
    assert ended.code == 2
    assert "more tokens than Parquet can hold" in ended.err
