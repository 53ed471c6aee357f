"""The speed benchmarks: the workload, given answers, and what the numbers mean."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kvcomm.bench.ttft import MODES, Mode, Pass, Ttft
from kvcomm.bench.workload import Workload
from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.policy import Dense, Exact
from kvcomm.runtime.result import Call
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.record import Recorder

SMALL = Workload(agents=3, prefix=60, input=90, output=40, closing=10)


def test_sizes_are_those_that_were_asked_for_and_texts_are_all_others(smol: LocalEngine) -> None:
    work = Workload(agents=3, prefix=128, input=200, output=64)
    graph = work.build(smol.codec)
    tasks = [work.task(smol.codec, sample) for sample in (0, 1)]
    answers = [ids for n in (0, 1) for ids in work.answers(smol.codec, graph, n).values()]
    assert {len(ids) for ids in answers} == {64}
    assert len(set(answers)) == 6
    assert tasks[0] == work.task(smol.codec, 0) != tasks[1]
    assert abs(len(smol.codec.encode(tasks[0])) - 200) <= 2
    assert len({node.agent.system for node in graph.nodes.values()}) == 3
    for shared_first in (False, True):
        last = work.build(smol.codec, shared_first=shared_first).template("agent3", smol.codec)
        assert abs(last.literal_tokens() - (128 + 24)) < 50  # and the chat template's own tokens
        assert set(last.names) == {"task", "agent1", "agent2"}


def test_given_answers_are_what_the_readers_read(tiny: LocalEngine) -> None:
    graph = SMALL.build(tiny.codec)
    forced = SMALL.answers(tiny.codec, graph, 0)
    inputs = {"task": SMALL.task(tiny.codec, 0)}
    firsts = []
    for policy in (Dense(), Exact()):
        made = GraphRun(tiny, RunSpec(graph, policy, inputs, forced=forced))
        asyncio.run(made.run(Recorder(None)))
        for call in made.calls:
            assert call.report.output_tokens == 40
            assert call.text == tiny.codec.decode(forced[call.node])
        firsts.append([call.report.first_token for call in made.calls])
    assert firsts[0] == firsts[1]
    last = made.calls[-1]
    tokens = {step.name: step.tokens for step in last.steps}
    assert tokens["agent1"] == tokens["agent2"] == 40
    # Only the last block and the closing literal are left when the last input is complete.
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


def test_decoded_answers_of_a_debate_are_compared_as_texts(tiny: LocalEngine) -> None:
    work = Workload(agents=2, prefix=30, input=40, output=20, graph="debate")
    found = ttft(tiny, "dense", "exact", work=work, decode=True)
    exact = found["exact"]
    assert exact.to_json(found["dense"])["as_dense"] == 1
    first, *rest = exact.passes[0].calls
    names = [call.node for call in (first, *rest)]
    assert names == ["agent1@1", "agent2@1", "agent1@2", "agent2@2"]
    exact.passes[0] = replace(exact.passes[0], calls=[said(first, first_token=-1), *rest])
    assert exact.to_json(found["dense"])["as_dense"] == pytest.approx(7 / 8)


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
