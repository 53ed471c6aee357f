"""`kvcomm trace show` as a reader sees it."""

from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.trace import TraceRun
from kvcomm.trace.show import show_run
from kvcomm.trace.text import number
from tests.trace import traces


def shown(run: TraceRun, width: int = 80, **options: object) -> str:
    return traces.shown(show_run(run, **options), width)  # type: ignore[arg-type]


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def whole(tmp_path: Path) -> TraceRun:
    return traces.whole(tmp_path / "20250102-030405-chain")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_header_says_what_ran_and_how_it_ended(whole: TraceRun, width: int) -> None:
    text = words(shown(whole, width))
    assert "model random:llama-tiny on cpu, float32" in text
    assert "mode kvcomm, seed 0" in text
    assert "status ok in 4.25 s" in text
    assert "129 in prompts, 66 computed, 63 reused (49 %); beside them 40 base" in text
    assert "answer 25 rolls are left." in text
    assert "state nothing was learned before" in text
    table = [line.split() for line in shown(whole).split("\n")]
    assert ["critic", "65", "2", "26", "37", "26", "0.20", "1.10", "24"] in table
    assert ["solver", "64", "64", "0", "0", "55", "0.20", "1.10", "24"] in table
    bar = "▓" * 12  # all calls took as long
    assert (f"24  {bar}" in shown(whole, width)) == (width == 160)


def test_segments_stand_under_their_call_with_their_reasons(whole: TraceRun) -> None:
    assert "hears solver" not in shown(whole)
    assert "--segments: where every token came from" in shown(whole)
    text = shown(whole, 160, segments=True)
    section = text[text.index("critic  hears solver") :]
    solver = next(line for line in section.split("\n") if "{solver}" in line)
    assert solver.split()[:6] == ["{solver}", "24", "1", "0", "23", "0"]
    assert "entropy 0.31 of 4 anchors is at most 0.42" in solver
    assert "realigned" in section.split("\n")[1]
    # Gates have a column where there is room.
    assert "out  TTFT          gate" in text
    assert "out  TTFT          gate" not in (narrow := shown(whole, 80, segments=True))
    assert "dense: {task}: no anchors yet, needs 2" in narrow
    # What a model wrote is neither markup nor control, and on one line unless asked for whole.
    assert "[bold]" in text
    assert "[each]" in text
    assert "\x1b" not in text
    assert "7 * 12 = 84. 84 - 59" in text
    assert "7 * 12 = 84.\n" in shown(whole, text=True)


def test_a_prompt_is_marked_by_its_sources(whole: TraceRun) -> None:
    text = shown(whole, node="critic", text=True)
    prompt = text[text.index("literal 0  26 prefix (26 ahead)\n") :]
    assert "\n  {solver}  1 computed, 23 realigned\n    7 * 12 = 84.↵\n    ↵\n    84" in prompt
    assert "  [literal 1 of critic]↵\n\n  sends" in prompt
    text = words(shown(whole, node="critic"))
    assert "[literal 1 of critic]" not in text
    assert "hears solver" in text
    assert "inputs complete at 0.90 s, first token at 1.10 s" in text
    assert "fill 0.010 s, forward 1.20 s" in text
    assert "no anchors yet" not in text
    with pytest.raises(UsageError, match="no node `judge` in this run: it has `solver`, `critic`"):
        shown(whole, node="judge")
    whole.texts.clear()
    assert "this trace holds no texts of prompts" in shown(whole, node="critic", text=True)


def test_retries_and_a_trace_that_was_cut_off(whole: TraceRun, tmp_path: Path) -> None:
    text = words(shown(whole, segments=True))
    assert "attempt 1 failed: took longer than its timeout of 2 s; tried again after 0.50 s" in text
    assert "editor #2 hears critic" in text
    assert "1 call under way" not in text
    cut = traces.cut_off(tmp_path)
    text = words(shown(cut, segments=True))
    assert "status cut off: 1 call finished, 1 call under way" in text
    assert "64 in prompts, 64 computed, 0 reused (0 %)" in text
    assert "this call did not finish" in text
    assert "1 line of the trace could not be read" in text
    with pytest.raises(UsageError, match="had not begun"):
        shown(cut, node="editor")


@pytest.mark.parametrize("segments", [False, True])
def test_a_failure_is_told_once(tmp_path: Path, segments: bool) -> None:
    text = shown(traces.failed(tmp_path), segments=segments)
    assert "status  failed in" in text
    assert text.count("the sampler met a NaN") == 1
    # Counts that are zero everywhere take no column.
    assert ("tokens  computed  ahead  reason" in text) == segments


def test_a_graph_that_no_screen_holds(whole: TraceRun) -> None:
    nodes = [whole.started.nodes[0].model_copy(update={"name": f"n{i}"}) for i in range(501)]
    whole.started = whole.started.model_copy(update={"nodes": nodes})
    text = shown(whole)
    assert "501 nodes, too many to draw" in text
    assert "●" not in text


def test_numbers() -> None:
    found = [number(x) for x in (0.04219, 0.5, 12.34, 1234.5)]
    assert found == ["0.042", "0.50", "12.3", "1,234.5"]
