"""`kvcomm demo`: its texts, what it makes of results, and the command with a random model."""

import json
from pathlib import Path

import pytest

from kvcomm.cli.demo_report import (
    Played,
    count_reasons,
    show_plan,
    show_question,
    show_table,
    summarise,
    to_json,
)
from kvcomm.cli.demo_team import QUESTIONS, Question, team
from kvcomm.cli.topologies import build_graph
from kvcomm.engine.local import LocalEngine
from kvcomm.runtime.exchanges import EXCHANGES
from kvcomm.runtime.result import Call, Result, TraceRef
from kvcomm.session import Session
from kvcomm.trace.events import Audited, Totals
from tests.trace import traces
from tests.trace.traces import shown

ARGS = ("demo", "--model", "random:llama-tiny", "--limit", "1")
MODES = ["dense", "exact", "kvcomm", "auto"]
NO_ANCHOR = "dense: {task}: 0 anchors of at least 31 tokens, needs 2"


def call(node: str, ttft: float, text: str, gate: str = "") -> Call:
    report = traces.call(node, f"0 0 {ttft} 2", gate=gate, dense=bool(gate))
    segment = traces.step(node, "task", "20 10 20 5")
    return Call(report=report, steps=[segment], message=traces.message(node, text))


def result(answer: str, ttft: float, wall: float, gate: str = "", audits: object = ()) -> Result:
    calls = [call("solver", 1.0, "work", gate), call("editor", ttft, answer)]
    counted = {"prompt_tokens": 100, "computed_tokens": 40, "reused_tokens": 60}
    totals = Totals(**counted, extra={"base": 7}, wall_s=wall)
    return Result(answer, "m", "kvcomm", calls, list(audits), totals, TraceRef(None))


def audit(divergence: float | None, used: bool = True) -> Audited:
    fields = {"node": "editor", "attempt": 1, "level": "light", "target": 1}
    return Audited(**fields, used=used, divergence=divergence)


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
            "kvcomm": [result("In glasgow.", 0.1, 2, NO_ANCHOR), result("[1903]", 0.3, 3)],
            "auto": [result("In Glasgow.", 0.1, 2, audits=audits), result("1902", 0.3, 3)],
        },
    )


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.split("\n")]


def test_a_summary_takes_medians_of_runs_means_of_calls_and_sums(played: Played) -> None:
    assert summarise(played, "kvcomm") == {
        "runs": 2,
        "calls": 4,
        "realigned_calls": 4,
        "dense_calls": 1,
        "audits": 0,
        "ttft_last_agent_s": pytest.approx(0.2),
        "ttft_mean_s": pytest.approx((1.0 + 0.1 + 1.0 + 0.3) / 4),
        "end_to_end_s": 2.5,
        "total_s": 5,
        "same_as_dense": 0,
        "right": 1,
        "divergence": None,
        "prompt_tokens": 200,
        "computed_tokens": 80,
        "reused_tokens": 120,
        "extra_tokens": 14,
        "dense_reasons": {NO_ANCHOR[15:]: 1},
    }
    assert summarise(played, "dense")["same_as_dense"] == 1
    # Of audits, those of delivered calls count.
    auto = summarise(played, "auto")
    assert (auto["audits"], auto["divergence"]) == (2, pytest.approx(0.003))


def test_reasons_are_counted_by_kind() -> None:
    gates = [
        NO_ANCHOR,
        "dense: {task}: 1 anchor of at least 28 tokens, needs 2; {solver}: no base KV",
        "dense: {task}: 0 anchors of at least 9 tokens, needs 2; "
        "{solver}: 1 anchor of at least 24 tokens, needs 2",
    ]
    assert count_reasons([call("solver", 1, "", gate) for gate in gates]) == {
        "0 anchors of at least 31 tokens, needs 2": 3,
        "no base KV": 1,
    }


def test_what_is_shown_of_the_plan_a_question_and_all_of_them(played: Played) -> None:
    text = shown(show_plan(played, "a model", "two cores", {"grey-petrel": 1085}))
    assert "Agents: solver and editor." in text
    assert "grey-petrel (1,085 tokens)\nModel: a model on two cores" in text
    text = shown(show_question(played, 1))
    assert "question 2 of 2: In which [year]?" in text
    assert "grey-petrel, read before; the fact to find: 1902" in text
    assert text.index("solver") < text.index("editor")
    assert "kvcomm 0.30 s 3.00 s 40 of 100 40 % wrong, other words" in rows(text)
    assert "auto 0.30 s 3.00 s 40 of 100 40 % right, as dense" in rows(text)
    assert "kvcomm: [1903]" in rows(text)
    assert "new to all modes" in shown(show_question(played, 0))
    text = shown(show_table(played))
    assert "kvcomm 0.20 s 5.00 s 80 40 % 14 0 of 2 1 of 2" in rows(text)
    assert "auto 0.20 s 5.00 s 80 40 % 14 0.0030 2 of 2 2 of 2" in rows(text)
    assert "kvcomm: 1 of 4 calls were dense" in text
    assert "1 call, such as: 0 anchors of at least 31 tokens, needs 2" in text
    played.results["auto"][0].audits[:] = [audit(0.00002)]
    assert "<0.0001" in shown(show_table(played))
    assert to_json(played)["facts"] == {"one": "Glasgow", "two": "1902"}


def test_facts_stand_in_long_texts_that_come_back_and_that_everybody_reads() -> None:
    for question in QUESTIONS:
        assert question.right(f"Answer: it is {question.fact.lower()}.")
        assert question.right(question.passage)
        others = {other.passage for other in QUESTIONS} - {question.passage}
        assert not any(map(question.right, [question.text, *others]))
    texts = [question.passage for question in QUESTIONS]
    assert all(700 <= len(text.split()) <= 900 for text in texts)
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert not {part for exchange in EXCHANGES for part in exchange} & set(texts)
    nodes = team().nodes
    heard = {name: node.hears for name, node in nodes.items()}
    assert heard == {"reader": [], "checker": ["reader"], "editor": ["reader", "checker"]}
    assert all("{text}" in node.agent.prompt for node in nodes.values())


@pytest.mark.slow
def test_the_embedded_model_finds_every_fact(smol: LocalEngine) -> None:
    # `kvcomm` takes texts for examples that are no shorter.
    assert len({len(smol.codec.encode(q.passage)) for q in QUESTIONS}) == 1
    with Session(smol, reuse="dense", state=None, runs=None) as session:
        for question in QUESTIONS:
            answer = session.run(team(), text=question.passage, question=question.text).answer
            assert question.right(answer), answer


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of the texts: to the random model each byte is a token."""
    whole = Question.passage.fget
    monkeypatch.setattr(Question, "passage", property(lambda question: whole(question)[:1000]))


@pytest.mark.usefixtures("short")
def test_json_has_every_mode(cli) -> None:
    ended = cli(*ARGS, "--json", "--out", "here")
    assert ended.code == 0
    graph = json.loads(ended.out)["graphs"]["readers"]
    assert (graph["questions"], list(graph["modes"])) == (1, MODES)
    dense, exact, kvcomm = (graph["modes"][mode] for mode in MODES[:3])
    assert dense["reused_tokens"] == 0
    assert dense["same_as_dense"] == exact["same_as_dense"] == 1
    assert exact["prompt_tokens"] == dense["prompt_tokens"] > 3 * 1000
    assert kvcomm["dense_calls"] == 3
    assert {mode for answers in graph["answers"].values() for mode in answers} == set(MODES)
    assert {file.parent.name for file in Path("here").glob("*/trace.jsonl")} == {
        f"mayor-{mode}" for mode in MODES
    }


@pytest.mark.usefixtures("short")
def test_a_reader_sees_every_question_a_table_and_where_the_traces_are(cli) -> None:
    ended = cli(*ARGS)
    text = " ".join(ended.out.split())
    assert "question 1 of 1: Who is the mayor of Maddock Ferry" in text
    assert "the fact to find: Rosa Lindgren" in text
    assert "calls were dense" in text
    assert "…" not in ended.out.split("1 question, 3 calls each")[1]  # no figure is cut
    assert max(map(len, ended.out.split("\n"))) <= 80
    command = ended.out.strip().split("\n")[-1].removeprefix("one of them: kvcomm ").split()
    assert cli(*command).code == 0
    assert "1/4  mayor, dense: " in ended.err
    ended = cli("demo", "--limit", "0")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --limit 0: write 1 at least\n"
