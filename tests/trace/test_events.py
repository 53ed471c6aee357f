"""The format of traces, as documented."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from kvcomm.trace import events, read_trace
from tests.trace import traces

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
KINDS = [
    kind
    for _, kind in inspect.getmembers(events, inspect.isclass)
    if issubclass(kind, events._Event) and kind is not events._Event
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_is_documented_field_by_field(kind: type[events._Event]) -> None:
    name = kind.model_fields["kind"].default
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| `{name}` |")]
    documented = re.findall(r"`(\w+)`", line.split("|")[3])
    fields = [field for field in kind.model_fields if field not in ("kind", "v", "t")]
    assert [field for field in documented if field in fields] == fields


def test_older_and_newer_lines_are_read() -> None:
    old = '{"kind": "node", "node": "a", "attempt": 1, "prompt_capacity": 3}'
    assert events.parse_event(old).v == events.VERSION
    new = old[:-1] + ', "v": 9, "colour": "red"}'
    assert events.parse_event(new).node == "a"  # type: ignore[union-attr]


def test_a_trace_of_version_1_is_read(tmp_path: Path) -> None:
    written = traces.whole(tmp_path / "run").path
    lines = []
    for line in written.read_text("utf-8").splitlines():
        event = {**json.loads(line), "v": 1}
        event.pop("ids", None)
        if event["kind"] == "step":
            event.pop("text")
        if event["kind"] != "text":
            lines.append(json.dumps(event))
    written.write_text("\n".join(lines), encoding="utf-8")
    run = read_trace(written)
    assert run.skipped == 0
    assert run.texts == {}
    assert {run.text(step) for view in run.calls for step in view.steps} == {None}
    assert run.finished is not None
