"""`trace diff` and `trace tail` on traces written by hand."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from kvcomm.errors import UsageError
from kvcomm.trace import TraceRun
from kvcomm.trace.diff import pairs, show_diff
from kvcomm.trace.follow import follow
from kvcomm.trace.lines import event_line
from kvcomm.trace.read import read_trace
from tests.trace import traces


def shown(first: TraceRun, second: TraceRun, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(show_diff(first, second))
    return file.getvalue()


@pytest.fixture
def one(tmp_path: Path) -> TraceRun:
    return traces.whole(tmp_path / "one")


def test_equal_runs_have_equal_texts(one: TraceRun, tmp_path: Path) -> None:
    other = traces.whole(tmp_path / "other")
    assert all(pair.same_characters is None for pair in pairs(one, other))
    text = shown(one, other)
    assert "1.0×" in text
    assert text.count("parts at") == 1  # the head of the column


def test_where_texts_part_and_what_else_is_different(one: TraceRun, tmp_path: Path) -> None:
    path = tmp_path / "other" / "trace.jsonl"
    traces.whole(path.parent)
    text = path.read_text()
    text = text.replace("so \\u001b[31m25 rolls", "so 26 rolls").replace('"seed":0', '"seed":7')
    path.write_text(text)
    other = read_trace(path)
    solver = next(pair for pair in pairs(one, other) if pair.node == "solver")
    at = len("7 * 12 = 84.\n\n84 - 59 = 25, so ")
    assert solver.same_characters == at
    text = shown(one, other)
    assert "solver parts at" in text
    assert "other seed: 0 and 7" in text
    assert max(map(len, text.split("\n"))) <= 80


def said(folder: Path, text: str, ids: list[int], model: str = "m") -> TraceRun:
    """A run whose first call says `text` in these tokens; empty in an older trace."""
    path = traces.whole(folder).path
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[0]["model"] = model
    message = next(line for line in lines if line["kind"] == "message")
    message |= {"text": text, "ids": ids}
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read_trace(path)


def test_the_first_token_where_texts_part(tmp_path: Path) -> None:
    one = said(tmp_path / "a", "It is twenty", [5, 6, 7, 8])
    # The characters part inside the third token.
    found = pairs(one, said(tmp_path / "b", "It is two", [5, 6, 9]))[0]
    assert (found.same_tokens, found.same_characters) == (2, 8)
    assert found.parting == "token 2 (character 8)"
    assert found.to_json()["same_tokens"] == 2
    text = shown(one, read_trace(tmp_path / "b" / "trace.jsonl"))
    assert "  token 2\n" in text
    assert "solver parts at token 2 (character 8)" in text
    assert re.search(r"  kvcomm +It is twenty *\n  kvcomm +It is two *\n", text)


def test_a_text_that_goes_on_parts_where_the_other_ends(tmp_path: Path) -> None:
    one = said(tmp_path / "a", "It is", [5, 6])
    found = pairs(one, said(tmp_path / "b", "It is so", [5, 6, 7]))[0]
    assert found.parting == "token 2 (character 5)"


@pytest.mark.parametrize(("ids", "model"), [([], "m"), ([5, 6, 9], "other")])
def test_without_comparable_ids_texts_part_at_a_character(
    tmp_path: Path, ids: list[int], model: str
) -> None:
    one = said(tmp_path / "a", "It is twenty", [5, 6, 7, 8])
    other = said(tmp_path / "b", "It is two", ids, model)
    found = pairs(one, other)[0]
    assert (found.same_tokens, found.parting) == (None, "character 8")
    assert "solver parts at character 8" in shown(one, other)


def test_a_run_that_was_cut_off_has_fewer_calls(one: TraceRun, tmp_path: Path) -> None:
    other = traces.cut_off(tmp_path / "cut")
    found = {pair.node: pair for pair in pairs(one, other)}
    assert found["solver"].second is not None
    assert found["critic"].second is None
    assert "→ –" in shown(one, other)


def test_runs_of_other_graphs_are_refused(one: TraceRun, tmp_path: Path) -> None:
    path = tmp_path / "other" / "trace.jsonl"
    traces.whole(path.parent)
    path.write_text(
        path.read_text()
        .replace('"solver"', '"x"')
        .replace('"critic"', '"y"')
        .replace('"editor"', '"z"')
    )
    with pytest.raises(UsageError, match="no call in common"):
        pairs(one, read_trace(path))


def test_every_event_has_its_line(one: TraceRun) -> None:
    lines = [line for line in map(event_line, one.events) if line]
    assert lines[0] == "chain on random:llama-tiny, kvcomm: 3 nodes"
    assert "critic begins" in lines
    assert any(line.startswith("critic done: 24 tokens in 1.10 s") for line in lines)
    assert any("timeout of 2 s; tries again in 0.50 s" in line for line in lines)
    assert lines[-1].startswith("ok in 4.25 s")
    assert all("\x1b" not in line and "\n" not in line for line in lines)


def test_a_run_is_followed_to_its_end_while_it_is_written(one: TraceRun, tmp_path: Path) -> None:
    whole = (one.path).read_bytes()
    path = tmp_path / "growing.jsonl"
    path.touch()

    def write() -> None:
        for start in range(0, len(whole), 700):  # lines are cut anywhere
            with path.open("ab") as file:
                file.write(whole[start : start + 700])
            time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    heard = list(follow(path, wait_s=0.001))
    writer.join()
    assert heard == one.events
