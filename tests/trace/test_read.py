"""Reading traces: the ends of large files, broken ones, other versions, the documented format."""

import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvcomm.errors import TraceError
from kvcomm.trace import events, read, read_trace
from kvcomm.trace.read import read_ends, read_start
from tests.trace import traces

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
KINDS = [
    kind
    for _, kind in inspect.getmembers(events, inspect.isclass)
    if issubclass(kind, events._Event) and kind.model_fields["kind"].default
]


def large(folder: Path, megabytes: int = 8) -> Path:
    """A whole trace with so much between its first lines and its last."""
    path = traces.whole(folder).path
    *lines, last = path.read_bytes().splitlines(keepends=True)
    text = json.dumps({"kind": "text", "v": 2, "t": 1.0, "id": 9, "text": "x" * 10_000})
    path.write_bytes(b"".join([*lines, (text.encode() + b"\n") * (100 * megabytes), last]))
    return path


def edit(path: Path, place: int, **fields: Any) -> None:
    lines = path.read_text().splitlines()
    lines[place] = json.dumps({**json.loads(lines[place]), **fields})
    path.write_text("\n".join(lines) + "\n")


def test_the_middle_of_a_trace_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = large(tmp_path)
    edit(path, -1, calls=3, answer="y" * (read.WINDOW // 2))
    taken = 0

    class Counted(io.BufferedReader):
        """A file that counts what is read of it."""

        def read(self, size: int) -> bytes:
            nonlocal taken
            taken += len(data := super().read(size))
            return data

        def readline(self, size: int) -> bytes:
            nonlocal taken
            taken += len(line := super().readline(size))
            return line

    monkeypatch.setattr(read, "_opened", lambda path: Counted(io.FileIO(path)))
    assert read_ends(path).calls == 3
    assert path.stat().st_size > 8_000_000
    assert 0 < taken < 2 * read.WINDOW


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
    edit(path, 0, inputs={"kind": "call", "task": '"kind":"call"'})
    with path.open("a") as file:
        event = {"kind": "text", "v": 2, "id": 7, "text": '"kind":"call" ' * 30}
        file.write(json.dumps(event) + "\n")
    assert read_ends(path).calls == 1


@pytest.mark.parametrize(
    "tail", [b"", b'{"kind": "end", "v": 2', b"\n\n\n", b"\xff\x00\n" * 2000, b"[" * 100_000]
)
def test_what_stands_behind_the_last_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    path = traces.whole(tmp_path).path
    path.write_bytes(path.read_bytes() + tail)
    run, found = read_trace(path), read_ends(path)
    assert (found.started, found.finished) == (run.started, run.finished)
    assert found.finished is not None
    assert found.calls == len(run.done) == 3


def test_audits_may_stand_behind_the_end(tmp_path: Path) -> None:
    path = traces.whole(tmp_path).path
    audit = {"kind": "audit", "v": 2, "t": 9.0, "node": "solver", "attempt": 1, "level": "light"}
    line = json.dumps({**audit, "used": True, "target": 0.02, "tokens": 400}) + "\n"
    path.write_text(path.read_text() + line * 300)
    run, ends = read_trace(path), read_ends(path)
    assert run.finished
    assert ends.finished
    assert run.finished.totals.extra["audit"] == 300 * 400
    assert ends.finished.totals.prompt_tokens == run.finished.totals.prompt_tokens
    assert sum(len(view.audits) for view in run.calls if view.node == "solver") >= 300


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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_is_documented_field_by_field(kind: type[events._Event]) -> None:
    name = kind.model_fields["kind"].default
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| `{name}` |")]
    documented = re.findall(r"`(\w+)`", line.split("|")[3])
    fields = [field for field in kind.model_fields if field not in ("kind", "v", "t")]
    assert sorted(field for field in documented if field in fields) == sorted(fields)


def test_traces_of_other_versions_are_read(tmp_path: Path) -> None:
    path = traces.whole(tmp_path / "run").path
    written = [{**json.loads(line), "v": 1} for line in path.read_text("utf-8").splitlines()]
    for event in written:
        event.pop("ids", None)
        if event["kind"] == "step":
            event.pop("text")
    older = [json.dumps(event) for event in written if event["kind"] != "text"]
    path.write_text("\n".join(older), encoding="utf-8")
    run = read_trace(path)
    assert run.finished
    assert (run.skipped, run.texts) == (0, {})
    assert {run.text(step) for view in run.calls for step in view.steps} == {None}
    newer = '{"kind": "node", "node": "a", "attempt": 1, "v": 9, "colour": "red"}'
    assert events.parse_event(newer).node == "a"  # type: ignore[union-attr]
