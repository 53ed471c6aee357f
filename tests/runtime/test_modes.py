"""What each mode promises: dense is the reference, exact equals it, kvcomm says what it did."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.agents import Sampling, critic, judge, solver
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.commands import Extend
from kvcomm.graphs import AgentGraph, chain, debate, fully_connected, layered
from kvcomm.reuse.policy import Kvcomm
from kvcomm.runtime.filling import Filling
from tests.engine.support import generate
from tests.runtime.support import GRAPH, TASK, agent, answered, check_at_rest, session
from tests.support import TINY

GRAPHS = {
    "chain": chain(agent("a"), agent("b"), agent("c")),
    "full": fully_connected(agent("a"), agent("b", 20), agent("c", 5), agent("d")),
    "debate": debate(agent("a", 18), agent("b", 7), rounds=3, judge=agent("j", exact=True)),
    "layered": layered([agent("a"), agent("b", 30)], [agent("c"), agent("d")], [agent("e")]),
    "shared-first": fully_connected(
        *[agent(name, layout="shared-first") for name in ("a", "b", "c")]
    ),
}


def texts(engine: LocalEngine, graph: AgentGraph, reuse: str, task: str = TASK) -> dict[str, str]:
    # auto has nothing to spend: it is exact.
    options = {"target_divergence": 0.0} if reuse == "auto" else {}
    with session(engine, reuse, **options) as active:
        return {call.node: call.text for call in active.run(graph, task).calls}


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropy test of kvcomm lets all in."""
    monkeypatch.setattr("kvcomm.reuse.offsets.anchors.GAMMA", 10.0)


@pytest.mark.parametrize("name", GRAPHS)
def test_exact_says_what_dense_says(tiny: LocalEngine, name: str) -> None:
    graph = GRAPHS[name]
    expected = texts(tiny, graph, "dense")
    for mode in ("exact", "exact", "auto"):  # the second time with a warm prefix cache
        assert texts(tiny, graph, mode) == expected


@pytest.mark.parametrize("shape", TINY[1:])
def test_exact_says_what_dense_says_on_other_models(
    engine_of: Callable[..., LocalEngine], shape: str
) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    assert texts(engine, GRAPHS["full"], "exact") == texts(engine, GRAPHS["full"], "dense")


def test_dense_is_the_plain_model_on_the_rendered_prompt(smol: LocalEngine) -> None:
    graph = chain(solver(max_tokens=16), critic(max_tokens=16))
    result = answered(smol, "dense", graph)
    solved = result.call("solver")
    asked = {
        "solver": f"{TASK}\n\nSolve the task and end with the answer.",
        "critic": f"{TASK}\n\nsolver wrote:\n{solved.text}\n\n"
        "Check the work above, step by step, and give the correct result.",
    }
    for node, prompt in asked.items():
        call = result.call(node)
        chat = smol.codec.chat(graph.nodes[node].agent.system, prompt)
        ids, _ = smol.codec.encode_structured(chat)
        assert call.report.prompt_tokens == len(ids)
        assert smol.codec.decode(generate(smol, ids, 16)) == call.text


def test_exact_says_what_dense_says_with_the_embedded_model(smol: LocalEngine) -> None:
    graph = debate(solver(max_tokens=12), critic(max_tokens=12), judge=judge(max_tokens=12))
    assert texts(smol, graph, "exact") == texts(smol, graph, "dense")


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_every_segment_adds_up_and_nothing_is_left(tiny: LocalEngine, reuse: str) -> None:
    with session(tiny, reuse) as active:
        for _ in range(3):
            result = active.run(GRAPHS["debate"], TASK)
    for call in result.calls:
        for step in call.steps:
            assert step.computed + step.prefix + step.realigned == step.tokens
            assert 0 <= step.ahead <= step.tokens
            assert step.reason
        assert sum(step.tokens for step in call.steps) == call.report.prompt_tokens
    totals = result.totals
    assert totals.computed_tokens + totals.reused_tokens == totals.prompt_tokens
    if reuse == "dense":
        assert totals.reused_tokens == 0
        assert all(call.total("ahead") == 0 for call in result.calls)
    check_at_rest(tiny)


def test_exact_works_ahead_and_keeps_only_the_tail_for_the_last_moment(tiny: LocalEngine) -> None:
    graph = chain(agent("a", 100), agent("b", 100))
    with session(tiny, "exact") as active:
        call = active.run(graph, TASK).call("b")
    steps = {step.name: step for step in call.steps}
    # Byte tokens: the message is followed in chunks of 16, so at most that is left of it, and
    # what a chunk in flight holds at the moment the last token is sampled.
    assert steps["a"].tokens - steps["a"].ahead <= 3 * 16
    assert steps["literal 0"].ahead == steps["literal 0"].tokens
    assert steps["task"].ahead == steps["task"].tokens
    assert steps["literal 2"].ahead == 0


def test_equal_prefixes_are_found_in_later_rounds_and_in_other_agents_prompts(
    tiny: LocalEngine,
) -> None:
    graph = debate(agent("a"), agent("b"), rounds=2, judge=agent("j"))
    with session(tiny, "exact") as active:
        result = active.run(graph, TASK)
        shared = active.run(GRAPHS["shared-first"], TASK)
    for node in ("a@2", "b@2"):
        steps = {step.name: step for step in result.call(node).steps}
        assert steps["literal 0"].way == steps["task"].way == "prefix"
    steps = {step.name: step for step in shared.call("c").steps}
    assert steps["task"].prefix == steps["task"].tokens


def test_kvcomm_falls_back_to_dense_until_it_has_anchors_and_says_why(tiny: LocalEngine) -> None:
    """The anchors of a run are there when the next one looks."""
    with session(tiny, "kvcomm") as active:
        calls = [active.run(GRAPHS["chain"], f"{TASK} {i}").call("b") for i in range(3)]
    assert calls[0].report.dense
    assert "{task}: 0 anchors of at least" in calls[0].report.gate
    assert "{a}: 0 anchors of at least" in calls[0].report.gate
    assert calls[1].report.gate.count("1 anchor of at least") == 2
    assert calls[0].report.base_tokens > 0
    assert all(call.report.exact for call in calls[:2])


@pytest.mark.usefixtures("open_gate")
def test_kvcomm_realigns_when_every_placeholder_passes(tiny: LocalEngine) -> None:
    with session(tiny, "kvcomm") as active:
        for _ in range(3):
            result = active.run(GRAPHS["chain"], TASK)
    call = result.call("b")
    assert not call.report.dense
    assert not call.report.exact
    assert call.report.gate == "realigned"
    ways = {step.name: step.way for step in call.steps}
    assert ways.pop("literal 0") == "prefix"
    assert ways == dict.fromkeys(("task", "literal 1", "a", "literal 2"), "realign")
    # One token for the message's last token, one for the prompt's.
    assert call.total("computed") <= 2
    # The anchors are this very prompt, so the answer is dense's.
    assert result.answer == texts(tiny, GRAPHS["chain"], "dense")["c"].strip()


@pytest.mark.usefixtures("open_gate")
def test_an_exact_agent_is_never_realigned(tiny: LocalEngine) -> None:
    graph = chain(agent("a"), agent("b", exact=True), agent("c"))
    with session(tiny, "kvcomm") as active:
        for _ in range(3):
            result = active.run(graph, TASK)
    call = result.call("b")
    assert call.total("realigned") == 0
    assert call.report.exact
    assert call.report.gate == "the agent is exact"
    assert not result.call("c").report.exact


def test_sampling_depends_on_the_seed_alone(tiny: LocalEngine) -> None:
    hot = Sampling(temperature=1.0, top_p=0.95, max_tokens=20)
    graph = debate(
        replace(agent("a"), sampling=hot), replace(agent("b"), sampling=hot), judge=agent("j")
    )
    answers = {}
    for seed in (1, 2):
        for reuse in ("dense", "exact"):
            with session(tiny, reuse, seed=seed) as active:
                answers[seed, reuse] = active.run(graph, TASK).answer
    assert answers[1, "dense"] == answers[1, "exact"]
    assert answers[1, "dense"] != answers[2, "dense"]


def test_ttft_runs_from_the_last_producers_final_token(tiny: LocalEngine) -> None:
    result = answered(tiny, "dense", chain(agent("a"), agent("b", 4)), TASK)
    first, second = (result.call(node).report for node in ("a", "b"))
    assert second.ready_at == pytest.approx(first.finished_at, abs=1e-9)
    assert second.ttft_s == pytest.approx(second.first_token_at - first.finished_at, abs=1e-9)
    assert first.ready_at <= first.opened_at <= first.first_token_at


def test_kvcomm_fills_its_prompt_while_messages_are_written(tiny: LocalEngine) -> None:
    """What passes is realigned at once; the last message waits for its end. Its phases are told."""
    with session(tiny, Kvcomm(gated=False)) as active:
        call = [active.run(GRAPH, TASK) for _ in range(4)][-1].call("c")
    assert not call.report.dense
    steps = {step.name: step for step in call.steps}
    assert steps["task"].way == "realign"
    assert steps["task"].ahead == steps["task"].tokens
    assert steps["b"].ahead == 0
    phases = call.report.phases
    assert {"offsets", "rotate", "fill", "forward", "first token", "decode"} <= set(phases)
    dense = answered(tiny, "dense", GRAPH).call("c").report
    assert set(dense.phases) == {"forward", "first token", "decode"}
    assert dense.phases["forward"] + dense.phases["first token"] <= dense.ttft_s


def test_a_message_that_does_not_pass_makes_the_call_start_over(tiny: LocalEngine) -> None:
    graph = chain(agent("a", 12, post=lambda text: text[::-1]), agent("b"))  # rewritten: no KV
    with session(tiny, "dense") as active:
        expected = active.run(graph, TASK).call("b").text
    with session(tiny, Kvcomm(gated=False)) as active:
        calls = [active.run(graph, TASK).call("b") for _ in range(4)]
    assert calls[-1].report.dense
    assert all(step.realigned == 0 for step in calls[-1].steps)
    assert "{a}: no base KV" in calls[-1].report.gate
    assert "{task}" not in calls[-1].report.gate  # it would have passed
    assert [call.text for call in calls] == [expected] * 4


def test_messages_that_end_together_are_taken_together(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that does not know yet of the second one would compute the first one by itself."""
    flushed: list[list[str]] = []
    asked, both = [0], threading.Event()
    flush, submit = Filling._flush, tiny.core.submit

    async def spy(self: Filling, seq: Any, pending: Any, **options: Any) -> None:
        if options.get("last") and seq.state.call.node == "j":
            flushed.append([segment.name for segment in pending])
        await flush(self, seq, pending, **options)

    def counting(command: Any) -> Any:
        asked[0] += isinstance(command, Extend) and command.last is not None
        future = submit(command)
        if asked[0] == 2:
            both.set()
        return future

    monkeypatch.setattr(Filling, "_flush", spy)
    monkeypatch.setattr(tiny.core, "submit", counting)
    graph = debate(agent("a", 20), agent("b", 20), rounds=1, judge=agent("j"))
    with session(tiny, "exact") as active:
        submit_both = tiny.core.call(lambda: both.wait(60))
        result = active.run(graph, TASK)
        assert submit_both.result()
    assert [result.call(node).report.output_tokens for node in ("a@1", "b@1")] == [20, 20]
    (last,) = flushed
    assert {"a@1", "b@1"} <= set(last)
