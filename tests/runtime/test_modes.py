"""What each mode promises: dense is the reference, exact equals it, kvcomm says what it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvcomm.agents import Sampling, critic, solver
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import AgentGraph, chain, debate, layered
from kvcomm.reuse.policy import Kvcomm
from tests.engine.support import generate
from tests.runtime.support import GRAPH, TASK, agent, answered, check_at_rest, session
from tests.support import POSITIONS, shapes

ABC = chain(agent("a"), agent("b"), agent("c"))
LAYERED = layered([agent("a"), agent("b", 30)], [agent("c"), agent("d")], [agent("e")])


def texts(engine: LocalEngine, graph: AgentGraph, reuse: str) -> dict[str, str]:
    return {call.node: call.text for call in answered(engine, reuse, graph).calls}


@pytest.mark.parametrize("shape", shapes(*POSITIONS))
def test_exact_says_what_dense_says(engine_of: Callable[..., LocalEngine], shape: str) -> None:
    engine = engine_of(f"random:{shape}", "float64")
    assert texts(engine, LAYERED, "exact") == texts(engine, LAYERED, "dense")


def test_dense_and_exact_are_the_plain_model_on_the_rendered_prompt(smol: LocalEngine) -> None:
    graph = chain(solver(max_tokens=16), critic(max_tokens=16))
    dense, exact = (answered(smol, reuse, graph) for reuse in ("dense", "exact"))
    solved = dense.call("solver").text
    asked = {
        "solver": f"{TASK}\n\nSolve the task and end with the answer.",
        "critic": f"{TASK}\n\nsolver wrote:\n{solved}\n\n"
        "Check the work above, step by step, and give the correct result.",
    }
    for node, prompt in asked.items():
        call = dense.call(node)
        chat = smol.codec.chat(graph.nodes[node].agent.system, prompt)
        ids, _ = smol.codec.encode_structured(chat)
        assert call.report.prompt_tokens == len(ids)
        assert exact.call(node).text == call.text == smol.codec.decode(generate(smol, ids, 16))


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_every_segment_adds_up_and_nothing_is_left(tiny: LocalEngine, reuse: str) -> None:
    graph = debate(agent("a", 18), agent("b", 7), rounds=3, judge=agent("j", exact=True))
    with session(tiny, reuse) as active:
        result = [active.run(graph, TASK) for _ in range(3)][-1]
    for call in result.calls:
        for step in call.steps:
            assert step.computed + step.prefix + step.realigned == step.tokens
            assert 0 <= step.ahead <= step.tokens
            assert step.reason
        assert sum(step.tokens for step in call.steps) == call.report.prompt_tokens
    totals = result.totals
    assert totals.computed_tokens + totals.reused_tokens == totals.prompt_tokens
    reused = {way for call in result.calls for way in ("prefix", "ahead") if call.total(way)}
    assert reused == (set() if reuse == "dense" else {"prefix", "ahead"})
    check_at_rest(tiny)


def test_exact_works_ahead_and_keeps_only_the_tail_for_the_last_moment(tiny: LocalEngine) -> None:
    call = answered(tiny, "exact", chain(agent("a", 100), agent("b", 100))).call("b")
    left = {step.name: step.tokens - step.ahead for step in call.steps}
    # Byte tokens: the message is followed in chunks of 16, so at most that is left of it, and
    # what a chunk in flight holds at the moment the last token is sampled.
    assert left["a"] <= 3 * 16
    assert left["literal 0"] == left["task"] == 0
    assert call.steps[-1].ahead == 0


def test_kvcomm_falls_back_to_dense_until_it_has_anchors_and_says_why(tiny: LocalEngine) -> None:
    """The anchors of a run are there when the next one looks."""
    with session(tiny, "kvcomm") as active:
        first, second = (active.run(ABC, f"{TASK} {i}").call("b").report for i in range(2))
    assert first.dense
    assert first.exact
    for name in ("task", "a"):
        assert f"{{{name}}}: 0 anchors of at least" in first.gate
        assert f"{{{name}}}: 1 anchor of at least" in second.gate
    assert first.base_tokens > 0


def test_kvcomm_realigns_when_every_placeholder_passes(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But never for an exact agent."""
    monkeypatch.setattr("kvcomm.reuse.offsets.anchors.GAMMA", 10.0)  # it lets all in
    graph = chain(agent("a"), agent("b"), agent("c", exact=True))
    with session(tiny, "kvcomm") as active:
        result = [active.run(graph, TASK) for _ in range(3)][-1]
    call, exact = result.call("b"), result.call("c")
    assert (call.report.dense, call.report.exact, call.report.gate) == (False, False, "realigned")
    ways = {step.name: step.way for step in call.steps}
    assert ways.pop("literal 0") == "prefix"
    assert ways == dict.fromkeys(("task", "literal 1", "a", "literal 2"), "realign")
    # One token for the message's last token, one for the prompt's.
    assert call.total("computed") <= 2
    assert (exact.report.exact, exact.report.gate) == (True, "the agent is exact")
    assert exact.total("realigned") == 0
    # The anchors are this very prompt, so the answer is dense's.
    assert {call.node: call.text for call in result.calls} == texts(tiny, graph, "dense")


def test_sampling_depends_on_the_seed_alone(tiny: LocalEngine) -> None:
    hot = Sampling(temperature=1.0, top_p=0.95, max_tokens=20)
    graph = debate(agent("a", sampling=hot), agent("b", sampling=hot), judge=agent("j"))
    one, same, other = (
        answered(tiny, reuse, graph, seed=seed).answer
        for reuse, seed in (("dense", 1), ("exact", 1), ("dense", 2))
    )
    assert one == same != other


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
    with session(tiny, Kvcomm(gated=False)) as active:
        calls = [active.run(graph, TASK).call("b") for _ in range(4)]
    assert calls[-1].report.dense
    assert calls[-1].total("realigned") == 0
    assert "{a}: no base KV" in calls[-1].report.gate
    assert "{task}" not in calls[-1].report.gate  # it would have passed
    assert {call.text for call in calls} == {texts(tiny, graph, "dense")["b"]}
