"""Random and mutated input: what is read is read, and all else is an error people can act on."""

import io
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from kvcomm.agents import Agent
from kvcomm.cli.output import console
from kvcomm.errors import KvcommError, TemplateError
from kvcomm.graphs import chain
from kvcomm.prompt import Hole, compile_template, parse_template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets import Offsets
from kvcomm.reuse.state import load_audits, load_state
from kvcomm.runtime.replay import replayed
from kvcomm.tasks.scoring.choice import chosen_letter
from kvcomm.tasks.scoring.extract import last_box
from kvcomm.tasks.scoring.math import MathScorer
from kvcomm.tasks.scoring.math_answer import readings
from kvcomm.tasks.scoring.qa import short_answer
from kvcomm.trace.diff import show_diff
from kvcomm.trace.export import FORMATS
from kvcomm.trace.log import event_line
from kvcomm.trace.read import read_event, read_trace
from kvcomm.trace.show import show_run
from tests.codecs import smol_codec, straddling_codec
from tests.robust.fuzzing import fuzzed
from tests.robust.test_hostile_state import FAMILIES, folder, saved
from tests.tasks.real import read_lines
from tests.trace.traces import failed, whole

__all__ = ["folder", "saved"]


SIGNS = ("{", "}", "{{", "}}", "{a}", "{task}", "{a@1}", "a", " ", "\ue000", "é", "<|im_end|>")
BRACES = st.lists(st.sampled_from(SIGNS) | st.text(max_size=3), max_size=8).map("".join)


def check_templates(source: str) -> None:
    with suppress(TemplateError):
        pieces = parse_template(source)
        for codec in (smol_codec(), straddling_codec()):
            template = compile_template(codec, pieces, pieces)
            holes = [piece.name for piece in pieces if isinstance(piece, Hole)]
            assert list(template.names) == holes * 2
            assert len(template.literals) == len(template.names) + 1


test_templates, test_templates_at_length = fuzzed(check_templates, few=150, source=BRACES)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 1e300, -1e300, 5e-324]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.floats(),
    st.integers(),
)
JUNK = NUMBERS | st.none() | st.booleans() | st.text(max_size=4) | st.just([]) | st.just({})


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("traces")
    return [read_lines(make(place / make.__name__).path) for make in (whole, failed)]


CHANGES = ("number", "junk", "drop", "twice", "move", "gone")


def spoil(data: st.DataObject, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines with values changed, fields removed, lines doubled, moved or gone."""
    lines = json.loads(json.dumps(lines))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        field = data.draw(st.sampled_from(sorted(line)))
        match data.draw(st.sampled_from(["number", *CHANGES])):
            case "number":
                numeric = [key for key in sorted(line) if type(line[key]) in (int, float)]
                line[data.draw(st.sampled_from(numeric))] = data.draw(NUMBERS)
            case "junk":
                line[field] = data.draw(JUNK)
            case "drop":
                line.pop(field)
                line.setdefault("t", 0)
            case "twice":
                lines.insert(at, line)
            case "move":
                lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "gone" if len(lines) > 1:
                lines.pop(at)
    return lines


def look_everywhere(path: Path, content: bytes) -> None:
    """Everything that is done with a trace; errors are those that people can act on."""
    path.write_bytes(content)
    with suppress(KvcommError):
        run = read_trace(path)
        for options in ({}, {"segments": True}, {"text": True}):
            out = console()
            out.file = io.StringIO()
            out.print(show_run(run, **options))
        for event in run.events:
            event_line(event)
        with suppress(KvcommError):
            show_diff(run, run)
        for name, export in FORMATS.items():
            export.write(run, path.parent / f"export.{name}")


def check_mutated_traces(traces: list[list[dict[str, Any]]], tmp_path: Path, data: Any) -> None:
    lines = spoil(data, data.draw(st.sampled_from(traces)))
    look_everywhere(tmp_path / "trace.jsonl", "\n".join(map(json.dumps, lines)).encode())


test_mutated_traces, test_mutated_traces_at_length = fuzzed(check_mutated_traces, data=st.data())


def check_random_lines(line: bytes) -> None:
    assert read_event(line) is None


test_random_lines, test_random_lines_at_length = fuzzed(
    check_random_lines,
    line=st.binary(max_size=60) | JUNK.map(lambda value: json.dumps(value).encode()),
)


def check_mutated_bytes(traces: list[list[dict[str, Any]]], tmp_path: Path, data: Any) -> None:
    lines = bytearray("\n".join(map(json.dumps, data.draw(st.sampled_from(traces)))).encode())
    for _ in range(data.draw(st.integers(1, 8))):
        lines[data.draw(st.integers(0, len(lines) - 1))] = data.draw(st.integers(0, 255))
    look_everywhere(tmp_path / "trace.jsonl", lines)


test_mutated_bytes, test_mutated_bytes_at_length = fuzzed(check_mutated_bytes, data=st.data())


def check_mutated_state(folder: Path, data: Any) -> None:
    path = folder / "aa.safetensors"
    before = path.read_bytes()
    size = int.from_bytes(before[:8], "little")
    spoiled = bytearray(before)
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of the file is numbers, most of what can go wrong is in the header.
        at = data.draw(st.integers(0, 7 + size) | st.integers(0, len(before) - 1))
        spoiled[at] = data.draw(st.integers(0, 255))
    path.write_bytes(spoiled[: data.draw(st.just(len(before)) | st.integers(0, len(before)))])
    loaded = load_state(folder, Offsets(FAMILIES), torch.device("cpu"))
    path.write_bytes(before)
    assert loaded.templates + len(loaded.refused) == 2


test_mutated_state, test_mutated_state_at_length = fuzzed(check_mutated_state, data=st.data())


def check_random_audits(folder: Path, text: bytes) -> None:
    (folder / "aa.audits.json").write_bytes(text)
    assert load_audits(folder, Auto())


test_random_audits, test_random_audits_at_length = fuzzed(
    check_random_audits,
    text=st.binary(max_size=40) | JUNK.map(lambda value: json.dumps({"audits": value}).encode()),
)


PIECES = (
    *("\\boxed{", "}", "{", "\\frac{1}{2}", "$", "$$", "\\(", "\\)", "\\text{", "_{", "^", "²"),
    *("answer is", "Answer:", "####", "1,000", "3/4", "-", "−", "9" * 400),
    *("**", "A", "(B)", ". ", "\n", " "),
)
ANSWERS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


def check_answers(text: str) -> None:
    for read in (last_box, readings, short_answer):
        read(text)
    chosen_letter(text, ["one", "", "three", text])


test_answers, test_answers_at_length = fuzzed(check_answers, few=150, text=ANSWERS)


@pytest.mark.parametrize("piece", [*PIECES, "\\boxed{1}", "\\text{a}", "1 ", "answer is A. "])
def test_long_answers_are_read_in_time(piece: str) -> None:
    """Many pieces in a row, and as many braces behind them."""
    for text in (piece * (40_000 // len(piece)), piece * 6_000 + "}" * 6_000):
        began = time.process_time()
        for read in (last_box, readings, short_answer):
            read(text)
        chosen_letter(text, ["one", "two", "three", "four"])
        # Linear: three seconds on a slow machine. What is not takes minutes.
        assert time.process_time() - began < 20


def test_mathematics_is_compared_in_time() -> None:
    texts = ("9**9**9**9", "\\frac{" * 300, "{" * 2000, "1" * 3000, "x^{" * 99, "\\int" * 50)
    began = time.monotonic()
    with MathScorer(timeout_s=1) as scorer:
        assert not any(scorer.score(f"\\boxed{{{text}}}", "42").correct for text in texts)
    assert time.monotonic() - began < 20


def test_a_replay_of_absurd_positions_takes_no_memory(tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    text = run.path.read_text().replace('"positions":[]', f'"positions":[[0,{2**62}]]')
    run.path.write_text(text)
    plans, _ = replayed(run.path, chain(Agent("solver"), Agent("critic"), Agent("editor")))
    assert plans
