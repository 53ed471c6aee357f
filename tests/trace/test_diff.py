"""`trace diff` and `trace tail` on traces written by hand."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvcomm.errors import UsageError
from kvcomm.trace import TraceRun
from kvcomm.trace.diff import pairs, show_diff
from kvcomm.trace.log import event_line
from kvcomm.trace.read import follow, read_trace
from tests.trace import traces


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> TraceRun:
    path = traces.whole(folder).path
    traces.rewrite(path, change)
    return read_trace(path)


def said(folder: Path, text: str, ids: list[int], **started: object) -> TraceRun:
    """A run whose first node says `text` in these tokens; none in an older trace."""

    def change(event: dict[str, Any]) -> None:
        if event["kind"] == "run":
            event |= started
        elif (event["kind"], event.get("node")) == ("message", "solver"):
            event |= {"text": text, "ids": ids}

    return changed(folder, change)


@pytest.fixture
def one(tmp_path: Path) -> TraceRun:
    return traces.whole(tmp_path / "one")


def test_equal_runs_have_equal_texts(one: TraceRun, tmp_path: Path) -> None:
    other = traces.whole(tmp_path / "other")
    assert all(pair.same_characters is None for pair in pairs(one, other))
    text = traces.shown(show_diff(one, other))
    assert "1.0×" in text
    assert text.count("parts at") == 1  # the head of the column
    other = said(tmp_path / "seed", "7", [], seed=7)
    assert "other seed: 0 and 7" in traces.shown(show_diff(one, other))


@pytest.mark.parametrize(
    ("text", "ids", "model", "tokens", "parting"),
    [
        # The characters part inside the third token.
        ("It is two", [5, 6, 9], "m", 2, "token 2 (character 8)"),
        # A text that goes on parts where the other ends.
        ("It is twenty-one", [5, 6, 7, 8, 9], "m", 4, "token 4 (character 12)"),
        # Without comparable ids: an older trace, another model.
        ("It is two", [], "m", None, "character 8"),
        ("It is two", [5, 6, 9], "other", None, "character 8"),
    ],
)
def test_the_first_token_where_texts_part(
    tmp_path: Path, text: str, ids: list[int], model: str, tokens: int | None, parting: str
) -> None:
    one = said(tmp_path / "a", "It is twenty", [5, 6, 7, 8], model="m")
    other = said(tmp_path / "b", text, ids, model=model)
    found = pairs(one, other)[0]
    assert (found.same_tokens, found.parting) == (tokens, parting)
    assert found.to_json()["same_tokens"] == tokens
    drawn = traces.shown(show_diff(one, other))
    assert f"  {parting.split(' (')[0]}\n" in drawn
    assert f"solver parts at {parting}" in drawn
    assert re.search(rf"  kvcomm +It is twenty *\n  kvcomm +{text} *\n", drawn)


def test_a_run_that_was_cut_off_has_fewer_calls(one: TraceRun, tmp_path: Path) -> None:
    other = traces.cut_off(tmp_path / "cut")
    found = {pair.node: pair for pair in pairs(one, other)}
    assert found["solver"].views[1] is not None
    assert found["critic"].views[1] is None
    assert "→ –" in traces.shown(show_diff(one, other))


def test_runs_of_other_graphs_are_refused(one: TraceRun, tmp_path: Path) -> None:
    def rename(event: dict[str, Any]) -> None:
        event |= {"node": f"other {event['node']}"} if "node" in event else {}

    with pytest.raises(UsageError, match="no call in common"):
        pairs(one, changed(tmp_path / "other", rename))


def test_a_run_is_followed_to_its_end_while_it_is_written(one: TraceRun, tmp_path: Path) -> None:
    whole = (one.path).read_bytes()
    path = tmp_path / "growing.jsonl"
    path.touch()

    def write() -> None:
        for start in range(0, len(whole), 700):  # lines are cut anywhere
            with path.open("ab") as file:
                file.write(whole[start : start + 700])

    writer = threading.Thread(target=write)
    writer.start()
    heard = list(follow(path, wait_s=0.001))
    writer.join()
    assert heard == one.events
    lines = [line for line in map(event_line, heard) if line]
    assert lines[0] == "chain on random:llama-tiny, kvcomm: 3 nodes"
    assert "critic begins" in lines
    assert any(line.startswith("critic done: 24 tokens in 1.10 s") for line in lines)
    assert any("timeout of 2 s; tries again in 0.50 s" in line for line in lines)
    assert lines[-1].startswith("ok in 4.25 s")
    assert all("\x1b" not in line and "\n" not in line for line in lines)
