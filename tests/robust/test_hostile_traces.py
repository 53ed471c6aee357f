"""Traces that somebody else wrote: shown as far as they can be read, in bounded time and memory."""

import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcomm.trace.export import FORMATS
from tests.trace import traces

# What must not reach a terminal: controls but newlines, overrides of direction, half characters.
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e[bold]x[/][/nope] :smile:"
RETRY = b'{"kind": "retry", "node": "a", "attempt": 1, "error": "", "wait_s": %s}'
# What follows the first line of a trace, and how many of these lines are no events.
LINES: dict[str, tuple[bytes, int]] = {
    "deeply nested": (b'{"kind": "error", "node": ' + b"[" * 100_000, 1),
    "huge integer": (b'{"kind": "error", "node": "a", "v": ' + b"9" * 100_000 + b"}", 1),
    "not a number": (RETRY % b"NaN", 1),
    "infinite": (RETRY % b"1e999", 1),
    "wrong types": (b'{"kind": "node", "node": {}, "attempt": "x", "prompt_capacity": []}', 1),
    "no object": (b'[1, 2]\nnull\n"text"', 3),
    "duplicate keys": (b'{"kind": "x", "kind": "error", "node": 1, "node": null, "error": ""}', 0),
    "binary": (bytes(range(11, 256)) * 40, 1),
    "long": (b'{"kind": "error", "node": null, "error": "' + b"x" * 40_000_000 + b'"}', 1),
}
COMMANDS = {
    "show": ("show", "one"),
    "segments": ("show", "one", "--segments"),
    "text": ("show", "one", "--text"),
    "json": ("show", "one", "--json"),
    "list": ("list",),
    "tail": ("tail", "one"),
    "diff": ("diff", "one", "one"),
    **{name: ("export", "one", "--to", name, "--force") for name in FORMATS},
}


def ended_of(cli: Callable, *names: str) -> list[Any]:
    return [cli("trace", *COMMANDS[name]) for name in names]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    traces.whole(tmp_path / "runs" / "one")
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
def test_what_is_no_event_is_passed_over(
    cli: Callable, trace: Path, memory: None, what: str
) -> None:
    lines, skipped = LINES[what]
    first, rest = trace.read_bytes().split(b"\n", 1)
    trace.write_bytes(b"\n".join([first, lines, rest]))
    value = json.loads(cli("trace", "show", "one", "--json").out)
    assert value["skipped_lines"] == skipped
    assert value["status"] == "ok"
    assert {ended.code for ended in ended_of(cli, "show", "list", "csv")} == {0}


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
    for ended in ended_of(cli, "show", "diff", "csv", "tail"):
        assert (ended.code, "no trace at 'one'" in ended.err) == (2, True)
    listed = cli("trace", "list")
    assert listed.code == 0
    assert "unreadable" in listed.out or kind == "dangling"


def test_links_are_read_through_and_not_written_through(cli: Callable, trace: Path) -> None:
    target = trace.parent.parent.parent / "elsewhere.csv"
    (trace.parent / "calls.csv").symlink_to(target)
    assert cli("trace", "export", "one", "--to", "csv").code == 2
    assert not target.exists()
    trace.symlink_to(trace.rename(trace.parent.parent / "moved.jsonl"))
    assert cli("trace", "show", "one").code == 0


def hostile(value: object) -> object:
    """The same JSON with an attack behind every free text."""
    if isinstance(value, dict):
        fixed = ("kind", "segment", "way", "stop", "status", "started")
        return {k: v if k in fixed else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


@pytest.mark.parametrize("command", COMMANDS)
def test_texts_of_a_trace_steer_no_terminal(cli: Callable, trace: Path, command: str) -> None:
    traces.rewrite(trace, lambda event: event.update(hostile(event)))  # type: ignore[call-overload]
    (ended,) = ended_of(cli, command)
    assert ended.code == 0, ended.err
    assert not STEERING.search(ended.out + ended.err)
    if command in ("show", "text", "tail", "json"):
        assert "[bold]x[/][/nope]" in ended.out


def test_errors_do_not_steer_the_terminal(cli: Callable, trace: Path) -> None:
    for argv in (["show", ATTACK], ["show", "one", "--node", ATTACK], ["list", "--runs", ATTACK]):
        ended = cli("trace", *argv)
        assert not STEERING.search(ended.out + ended.err)


def test_counts_that_add_up_to_more_than_a_column_holds(cli: Callable, trace: Path) -> None:
    huge = {"computed": 2**63 - 1}
    traces.rewrite(trace, lambda event: event.update(huge if event["kind"] == "step" else {}))
    *others, last = ended_of(cli, "show", "segments", "csv", "html", "parquet")
    assert {ended.code for ended in others} == {0}
    assert last.code == 2
    assert "more tokens than Parquet can hold" in last.err
