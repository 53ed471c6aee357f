"""What the demo makes of its results, without a model."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvcomm.cli.demo_report import (
    Played,
    count_reasons,
    show_question,
    show_table,
    summarise,
    to_json,
)
from kvcomm.cli.topologies import build_graph
from kvcomm.runtime.result import Call, Result, TraceRef
from kvcomm.tasks import Task
from kvcomm.trace.events import CallFinished, MessageSent, SegmentStep, Totals

NO_ANCHOR = "dense: {task}: 0 anchors of at least 31 tokens, needs 2"


def call(node: str, ttft: float, text: str, gate: str = "", dense: bool = False) -> Call:
    key = {"node": node, "attempt": 1}
    report = CallFinished(
        **key,
        agent=node,
        round=1,
        mode="kvcomm",
        gate=gate,
        dense=dense,
        exact=False,
        prompt_tokens=50,
        output_tokens=24,
        opened_at=0,
        ready_at=0,
        first_token_at=ttft,
        finished_at=1,
        ttft_s=ttft,
        decode_s=1,
        stop="length",
    )
    step = SegmentStep(
        **key,
        index=0,
        segment="placeholder",
        name="task",
        tokens=50,
        way="realign",
        computed=20,
        prefix=10,
        realigned=20,
        ahead=5,
        reason="",
    )
    message = MessageSent(
        **key, text=text, tokens=24, handle=None, covered=0, exact=False, reason=""
    )
    return Call(report=report, steps=[step], message=message)


def result(answer: str, ttft: float, wall: float, gate: str = "", dense: bool = False) -> Result:
    calls = [call("solver", 1.0, "work", gate, dense), call("editor", ttft, answer)]
    totals = Totals(
        prompt_tokens=100, computed_tokens=40, reused_tokens=60, extra={"base": 7}, wall_s=wall
    )
    return Result(answer, "m", "kvcomm", calls, [], totals, TraceRef(None))


@pytest.fixture
def played() -> Played:
    return Played(
        build_graph("chain", agents=2),
        [Task("one", "What is 6 * 7?", "42"), Task("two", "And [8] * 7?", "56")],
        {
            "dense": [result("42", 0.4, 4), result("56", 0.6, 6)],
            "kvcomm": [result("42", 0.1, 2, NO_ANCHOR, True), result("[57]", 0.3, 3)],
        },
    )


def shown(renderable: object) -> str:
    file = io.StringIO()
    Console(file=file, width=80, highlight=False, markup=False).print(renderable)
    assert max(map(len, file.getvalue().split("\n"))) <= 80
    return file.getvalue()


def test_a_summary_takes_medians_of_runs_and_means_of_calls(played: Played) -> None:
    summary = summarise(played, "kvcomm")
    assert summary.ttft_last_agent_s == pytest.approx(0.2)
    assert summary.ttft_mean_s == pytest.approx((1.0 + 0.1 + 1.0 + 0.3) / 4)
    assert summary.end_to_end_s == 2.5
    assert (summary.prompt_tokens, summary.computed_tokens, summary.reused_tokens) == (200, 80, 120)
    assert summary.extra_tokens == 14
    assert summary.same_as_dense == 0.5
    assert (summary.calls, summary.dense_calls) == (4, 1)
    assert summarise(played, "dense").same_as_dense == 1


def test_reasons_are_counted_by_kind() -> None:
    gates = [
        NO_ANCHOR,
        "dense: {task}: 1 anchor of at least 28 tokens, needs 2; {solver}: no base KV",
        "dense: {task}: 0 anchors of at least 9 tokens, needs 2; "
        "{solver}: 1 anchor of at least 24 tokens, needs 2",
    ]
    assert count_reasons([call("solver", 1, "", gate, True) for gate in gates]) == {
        "0 anchors of at least 31 tokens, needs 2": 3,
        "no base KV": 1,
    }


def test_the_table_has_a_line_a_mode_and_says_why_calls_were_dense(played: Played) -> None:
    text = shown(show_table(played))
    line = next(line for line in text.split("\n") if line.startswith("kvcomm "))
    assert " ".join(line.split()) == "kvcomm 0.20 s 0.60 s 2.50 s 80 120 14 50 %"
    assert "kvcomm: 1 of 4 calls were dense" in text
    assert "1 call, such as: 0 anchors of at least 31 tokens, needs 2" in text


def test_a_question_shows_each_message_and_its_reuse(played: Played) -> None:
    text = shown(show_question(played, 0))
    assert "What is 6 * 7? (answer: 42)" in text
    assert text.index("solver") < text.index("editor")
    assert "kvcomm 50 20 10 20 5 0.10 as dense" in " ".join(text.split())


def test_json_has_a_summary_a_mode_and_all_answers(played: Played) -> None:
    value = to_json(played)
    assert value["questions"] == 2
    assert value["modes"]["kvcomm"]["dense_reasons"] == {NO_ANCHOR[15:]: 1}
    assert value["answers"]["two"] == {"dense": "56", "kvcomm": "[57]"}
