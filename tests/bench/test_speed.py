"""The speed benchmarks: the workload, given answers, and what the numbers mean."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.bench.throughput import throughput
from kvcomm.bench.ttft import MODES, Mode, Pass, Ttft
from kvcomm.bench.workload import Workload
from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.policy import Dense, Exact, Policy
from kvcomm.runtime.result import Call
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.record import Recorder

SMALL = Workload(agents=3, prefix=60, input=90, output=40, closing=10)


def test_sizes_are_those_that_were_asked_for(smol: LocalEngine) -> None:
    work = Workload(agents=3, prefix=128, input=200, output=64)
    graph = work.build(smol.codec)
    answers = work.answers(smol.codec, graph, 0)
    assert all(len(ids) == 64 for ids in answers.values())
    assert abs(len(smol.codec.encode(work.task(smol.codec, 0))) - 200) <= 2
    for shared_first in (False, True):
        last = work.build(smol.codec, shared_first=shared_first).template("agent3", smol.codec)
        assert abs(last.literal_tokens() - (128 + 24)) < 50  # and the chat template's own tokens
        assert set(last.names) == {"task", "agent1", "agent2"}


def test_samples_and_agents_have_texts_of_their_own(smol: LocalEngine) -> None:
    graph = SMALL.build(smol.codec)
    assert SMALL.task(smol.codec, 0) != SMALL.task(smol.codec, 1)
    assert SMALL.task(smol.codec, 0) == SMALL.task(smol.codec, 0)
    answers = SMALL.answers(smol.codec, graph, 0)
    assert len(set(answers.values())) == 3
    assert answers != SMALL.answers(smol.codec, graph, 1)
    assert len({node.agent.system for node in graph.nodes.values()}) == 3


def run(engine: LocalEngine, policy: Policy) -> dict[str, Call]:
    graph = SMALL.build(engine.codec)
    forced = SMALL.answers(engine.codec, graph, 0)
    inputs = {"task": SMALL.task(engine.codec, 0)}
    made = GraphRun(engine, RunSpec(graph, policy, inputs, forced=forced))
    asyncio.run(made.run(Recorder(None)))
    return {call.node: call for call in made.calls}


def test_given_answers_are_what_the_readers_read(tiny: LocalEngine) -> None:
    answers = SMALL.answers(tiny.codec, SMALL.build(tiny.codec), 0)
    dense, exact = run(tiny, Dense()), run(tiny, Exact())
    for calls in (dense, exact):
        for node, call in calls.items():
            assert call.report.output_tokens == 40
            assert call.text == tiny.codec.decode(answers[node])
        steps = {step.name: step for step in calls["agent3"].steps}
        assert steps["agent1"].tokens == steps["agent2"].tokens == 40
    for node, call in dense.items():
        assert call.report.first_token == exact[node].report.first_token
    # Only the last block and the closing literal are left when the last input is complete.
    last = exact["agent3"]
    closing = next(s for s in reversed(last.steps) if s.segment == "literal").tokens
    assert last.report.prompt_tokens - last.total("ahead") <= 16 + closing
    assert last.report.ahead_s > 0


def ttft(
    engine: LocalEngine, *modes: str, work: Workload = SMALL, samples: int = 2, **options: Any
) -> dict[str, Mode]:
    bench = Ttft(engine, work, modes=modes or tuple(MODES), **options)
    return {mode.name: mode for mode in asyncio.run(bench.run(samples))}


def said(call: Call, **changes: Any) -> Call:
    """The call, but another thing is reported."""
    return call.model_copy(update={"report": call.report.model_copy(update=changes)})


def test_every_mode_is_measured_on_every_sample(tiny: LocalEngine) -> None:
    before = tiny.config._attn_implementation
    found = ttft(tiny)
    assert tiny.config._attn_implementation == before  # `generate` had its own meanwhile
    assert list(found) == list(MODES)
    values = {name: mode.to_json(found["dense"]) for name, mode in found.items()}
    for name, value in values.items():
        assert len(found[name].passes) == 2
        assert [agent["agent"] for agent in value["agents"]] == ["agent1", "agent2", "agent3"]
        assert all(agent["ttft_s"] > 0 for agent in value["agents"])
        assert [agent["decode_budget_s"] > 0 for agent in value["agents"]] == [False, True, True]
    for name in ("generate", "dense", "exact"):  # they lose nothing
        assert values[name]["as_dense"] == 1
    prompts = {name: [a["prompt_tokens"] for a in v["agents"]] for name, v in values.items()}
    del prompts["shared-first"]
    assert all(tokens == prompts["dense"] for tokens in prompts.values())


def test_decoded_answers_are_compared_as_texts(tiny: LocalEngine) -> None:
    found = ttft(tiny, "dense", "exact", decode=True)
    exact = found["exact"]
    assert exact.to_json(found["dense"])["as_dense"] == 1
    first, *rest = exact.passes[0].calls
    first = said(first, first_token=-1)
    exact.passes[0] = replace(exact.passes[0], calls=[first, *rest])
    assert exact.to_json(found["dense"])["as_dense"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(("given", "counted"), [(True, 1), (False, 2)])
def test_given_answers_count_where_work_ahead_fits_beside_decoding(
    tiny: LocalEngine, given: bool, counted: int
) -> None:
    mode = ttft(tiny, "exact", samples=1)["exact"]
    (one,) = mode.passes

    def took(ahead_s: float) -> Pass:
        return replace(one, calls=[said(call, ahead_s=ahead_s) for call in one.calls])

    mode.given, mode.budgets = given, dict.fromkeys(mode.budgets, 2.0)
    mode.passes = [took(1.0), took(3.0)]
    assert mode.to_json()["samples"] == counted


def test_a_fresh_mode_finds_nothing_from_the_sample_before(tiny: LocalEngine) -> None:
    found = ttft(tiny, "exact", "shared-first")
    first, second = ([c.total("computed") for c in p.calls] for p in found["exact"].passes)
    prompts = [call.report.prompt_tokens for call in found["exact"].passes[0].calls]
    assert first == second == prompts
    shared = found["shared-first"].passes[0].calls
    # The task was in agent 2's row.
    assert shared[2].total("computed") < shared[2].report.prompt_tokens


def test_a_debate_has_two_rounds(tiny: LocalEngine) -> None:
    work = Workload(agents=2, prefix=30, input=40, output=20, graph="debate")
    found = ttft(tiny, "dense", "exact", work=work, samples=1)
    names = ["agent1@1", "agent2@1", "agent1@2", "agent2@2"]
    assert [call.node for call in found["exact"].passes[0].calls] == names
    assert found["exact"].to_json(found["dense"])["as_dense"] == 1


async def test_throughput_counts_tokens_and_graphs(tiny: LocalEngine) -> None:
    told: list[str] = []
    report = await throughput(
        tiny, [1, 3], [2], prompt=40, tokens=8, samples=1, on_step=told.append
    )
    assert [entry["rows"] for entry in report.value["decode"]] == [1, 3]
    assert all(entry["tokens_per_s"] > 0 for entry in report.value["decode"])
    assert report.value["generate_tokens_per_s"] > 0
    assert report.value["graphs"][0]["graphs_per_s"] > 0
    assert len(told) == 4
