"""What the demo makes of its results, without a model."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvcomm.cli.demo_report import (
    Played,
    count_reasons,
    show_plan,
    show_question,
    show_table,
    summarise,
    to_json,
)
from kvcomm.cli.demo_team import Question
from kvcomm.cli.topologies import build_graph
from kvcomm.runtime.result import Call, Result, TraceRef
from kvcomm.trace.events import Audited, CallFinished, MessageSent, SegmentStep, Totals

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


def result(
    answer: str, ttft: float, wall: float, gate: str = "", dense: bool = False, audits: object = ()
) -> Result:
    calls = [call("solver", 1.0, "work", gate, dense), call("editor", ttft, answer)]
    totals = Totals(
        prompt_tokens=100, computed_tokens=40, reused_tokens=60, extra={"base": 7}, wall_s=wall
    )
    return Result(answer, "m", "kvcomm", calls, list(audits), totals, TraceRef(None))


def audit(divergence: float | None, used: bool = True) -> Audited:
    return Audited(
        t=0, node="editor", attempt=1, level="light", used=used, target=1, divergence=divergence
    )


@pytest.fixture
def played() -> Played:
    audits = [audit(0.002), audit(0.004), audit(0.9, used=False), audit(None)]
    return Played(
        build_graph("chain", agents=2),
        (
            Question("one", "grey-petrel", "Where was she built?", "Glasgow"),
            Question("two", "grey-petrel", "In which [year]?", "1902"),
        ),
        {
            "dense": [result("In Glasgow.", 0.4, 4), result("1902", 0.6, 6)],
            "kvcomm": [result("In glasgow.", 0.1, 2, NO_ANCHOR, True), result("[1903]", 0.3, 3)],
            "auto": [result("In Glasgow.", 0.1, 2, audits=audits), result("1902", 0.3, 3)],
        },
    )


def shown(renderable: object) -> str:
    file = io.StringIO()
    Console(file=file, width=80, highlight=False, markup=False).print(renderable)
    assert max(map(len, file.getvalue().split("\n"))) <= 80
    return file.getvalue()


def test_a_summary_takes_medians_of_runs_means_of_calls_and_sums(played: Played) -> None:
    summary = summarise(played, "kvcomm")
    assert summary.ttft_last_agent_s == pytest.approx(0.2)
    assert summary.ttft_mean_s == pytest.approx((1.0 + 0.1 + 1.0 + 0.3) / 4)
    assert (summary.end_to_end_s, summary.total_s) == (2.5, 5)
    assert (summary.prompt_tokens, summary.computed_tokens, summary.reused_tokens) == (200, 80, 120)
    assert summary.extra_tokens == 14
    assert (summary.same_as_dense, summary.right) == (0, 1)
    assert (summary.calls, summary.dense_calls, summary.realigned_calls) == (4, 1, 4)
    assert summarise(played, "dense").same_as_dense == 1


def test_divergence_is_that_of_delivered_calls(played: Played) -> None:
    assert summarise(played, "auto").divergence == pytest.approx(0.003)
    assert summarise(played, "auto").audits == 2
    assert summarise(played, "kvcomm").divergence is None


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
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "kvcomm 0.20 s 5.00 s 80 40 % 14 0 of 2 1 of 2" in lines
    assert "auto 0.20 s 5.00 s 80 40 % 14 0.0030 2 of 2 2 of 2" in lines
    assert "kvcomm: 1 of 4 calls were dense" in text
    assert "1 call, such as: 0 anchors of at least 31 tokens, needs 2" in text


def test_a_tiny_divergence_is_not_shown_as_none(played: Played) -> None:
    played.results["auto"][0].audits[:] = [audit(0.00002)]
    assert "<0.0001" in shown(show_table(played))


def test_a_question_shows_messages_and_what_each_mode_answered(played: Played) -> None:
    text = shown(show_question(played, 1))
    assert "question 2 of 2: In which [year]?" in text
    assert "grey-petrel, read before; the fact to find: 1902" in text
    assert text.index("solver") < text.index("editor")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "kvcomm 0.30 s 3.00 s 40 of 100 40 % wrong, other words" in lines
    assert "auto 0.30 s 3.00 s 40 of 100 40 % right, as dense" in lines
    assert "kvcomm: [1903]" in lines
    assert "new to all modes" in shown(show_question(played, 0))


def test_the_plan_names_agents_texts_and_machine(played: Played) -> None:
    text = shown(show_plan(played, "a model", "two cores", {"grey-petrel": 1085}))
    assert "Agents: solver and editor." in text
    assert "grey-petrel (1,085 tokens)" in text
    assert "Model: a model on two cores" in text


def test_json_has_a_summary_a_mode_and_all_answers(played: Played) -> None:
    value = to_json(played)
    assert value["questions"] == 2
    assert value["modes"]["kvcomm"]["dense_reasons"] == {NO_ANCHOR[15:]: 1}
    assert value["answers"]["two"] == {"dense": "1902", "kvcomm": "[1903]", "auto": "1902"}
    assert value["facts"] == {"one": "Glasgow", "two": "1902"}
