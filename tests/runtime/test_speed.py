"""The speed benchmarks: the workload, given answers, and what the numbers mean."""

from __future__ import annotations

import asyncio

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.policy import Dense, Exact
from kvcomm.runtime.result import Call
from kvcomm.runtime.scheduler import Scheduler
from kvcomm.runtime.speed import MODES, Mode, Pass, Ttft
from kvcomm.runtime.speed import Agent as Measured
from kvcomm.runtime.throughput import Throughput
from kvcomm.runtime.workload import Workload
from kvcomm.trace.record import Recorder

SMALL = Workload(agents=3, prefix=60, input=90, output=40, closing=10)


def test_sizes_are_those_that_were_asked_for(smol: LocalEngine) -> None:
    work = Workload(agents=3, prefix=128, input=200, output=64)
    graph = work.build(smol.codec)
    answers = work.answers(smol.codec, graph, 0)
    assert all(len(ids) == 64 for ids in answers.values())
    assert abs(len(smol.codec.encode(work.task(smol.codec, 0))) - 200) <= 2
    last = graph.template("agent3", smol.codec)
    assert abs(last.literal_tokens() - (128 + 24)) < 40  # and the chat template's own tokens
    assert last.names == ("task", "agent1", "agent2")


def test_samples_and_agents_have_texts_of_their_own(smol: LocalEngine) -> None:
    graph = SMALL.build(smol.codec)
    assert SMALL.task(smol.codec, 0) != SMALL.task(smol.codec, 1)
    assert SMALL.task(smol.codec, 0) == SMALL.task(smol.codec, 0)
    answers = SMALL.answers(smol.codec, graph, 0)
    assert len(set(answers.values())) == 3
    assert answers != SMALL.answers(smol.codec, graph, 1)
    assert len({node.agent.system for node in graph.nodes.values()}) == 3


def run(engine: LocalEngine, work: Workload, policy: object, *, forced: bool) -> dict[str, Call]:
    graph = work.build(engine.codec)
    scheduler = Scheduler(
        engine,
        graph,
        policy,  # type: ignore[arg-type]
        inputs={"task": work.task(engine.codec, 0)},
        seed=0,
        forced=work.answers(engine.codec, graph, 0) if forced else {},
    )
    calls: list[Call] = []
    asyncio.run(scheduler.run(Recorder(None), calls))
    return {call.node: call for call in calls}


def test_given_answers_are_what_the_readers_read(tiny: LocalEngine) -> None:
    answers = SMALL.answers(tiny.codec, SMALL.build(tiny.codec), 0)
    for policy in (Dense(), Exact()):
        calls = run(tiny, SMALL, policy, forced=True)
        for node, call in calls.items():
            assert call.report.output_tokens == 40
            assert call.text == tiny.codec.decode(answers[node])
        steps = {step.name: step for step in calls["agent3"].steps}
        assert steps["agent1"].tokens == steps["agent2"].tokens == 40


def test_given_answers_change_nothing_in_what_is_sampled(tiny: LocalEngine) -> None:
    dense = run(tiny, SMALL, Dense(), forced=True)
    exact = run(tiny, SMALL, Exact(), forced=True)
    assert {n: c.report.first_token for n, c in dense.items()} == {
        n: c.report.first_token for n, c in exact.items()
    }


def test_exact_rows_keep_up_with_given_answers(tiny: LocalEngine) -> None:
    """Only the last block and the closing literal are left when the last input is complete."""
    call = run(tiny, SMALL, Exact(), forced=True)["agent3"]
    left = call.report.prompt_tokens - call.total("ahead")
    closing = next(s for s in reversed(call.steps) if s.segment == "literal").tokens
    assert left <= 16 + closing
    assert call.report.ahead_s > 0


def ttft(engine: LocalEngine, **options: object) -> dict[str, Mode]:
    with engine.plain() as plain:
        bench = Ttft(engine, plain, SMALL, **options)  # type: ignore[arg-type]
        return {mode.name: mode for mode in asyncio.run(bench.run(2))}


def test_every_mode_is_measured_on_every_sample(tiny: LocalEngine) -> None:
    found = ttft(tiny)
    assert list(found) == list(MODES)
    for mode in found.values():
        assert len(mode.passes) == 2
        value = mode.to_json(found["dense"])
        assert [agent["agent"] for agent in value["agents"]] == ["agent1", "agent2", "agent3"]
        assert all(agent["ttft_s"] > 0 for agent in value["agents"])
    prompts = [[a.prompt_tokens for p in found[n].passes for a in p.agents] for n in MODES]
    assert all(
        p == prompts[0] for name, p in zip(MODES, prompts, strict=True) if name != "shared-first"
    )


def test_the_lossless_modes_sample_what_dense_samples(tiny: LocalEngine) -> None:
    found = ttft(tiny, modes=("generate", "dense", "exact"))
    assert found["generate"].to_json(found["dense"])["as_dense"] == 1
    assert found["exact"].to_json(found["dense"])["as_dense"] == 1


def test_decoded_answers_are_compared_as_texts(tiny: LocalEngine) -> None:
    found = ttft(tiny, modes=("dense", "exact"), decode=True)
    assert found["exact"].to_json(found["dense"])["as_dense"] == 1
    assert all(len(p.answers) == 3 for p in found["exact"].passes)


@pytest.mark.parametrize(("given", "counted"), [(True, 1), (False, 2)])
def test_given_answers_count_where_work_ahead_fits_beside_decoding(
    tiny: LocalEngine, given: bool, counted: int
) -> None:
    def took(ahead_s: float) -> Pass:
        agent = Measured("a", 10, 10, 0, ahead_s, 2.0, 0.1, 1, "exact")
        return Pass([agent], ahead_s, {}, given=given)

    mode = Mode("exact", SMALL.build(tiny.codec), Exact(), tiny)
    mode.passes += [took(1.0), took(3.0)]
    assert mode.to_json()["samples"] == counted


def test_a_fresh_mode_finds_nothing_from_the_sample_before(tiny: LocalEngine) -> None:
    found = ttft(tiny, modes=("exact", "shared-first"))
    first, second = ([a.computed_tokens for a in p.agents] for p in found["exact"].passes)
    assert first == second == [a.prompt_tokens for a in found["exact"].passes[0].agents]
    shared = found["shared-first"].passes[0].agents
    assert shared[2].computed_tokens < shared[2].prompt_tokens  # the task was in agent 2's row


def test_a_debate_has_two_rounds(tiny: LocalEngine) -> None:
    work = Workload(agents=2, prefix=30, input=40, output=20, graph="debate")
    with tiny.plain() as plain:
        bench = Ttft(tiny, plain, work, modes=("dense", "exact"))
        dense, exact = asyncio.run(bench.run(1))
    assert [agent.node for agent in exact.passes[0].agents] == [
        "agent1@1",
        "agent2@1",
        "agent1@2",
        "agent2@2",
    ]
    assert exact.to_json(dense)["as_dense"] == 1


async def test_throughput_counts_tokens_and_graphs(tiny: LocalEngine) -> None:
    told: list[str] = []
    with tiny.plain() as plain:
        bench = Throughput(tiny, plain, prompt=40, tokens=8, samples=1, on_step=told.append)
        await bench.run([1, 3], [2])
    value = bench.to_json()
    assert [entry["rows"] for entry in value["decode"]] == [1, 3]
    assert all(entry["tokens_per_s"] > 0 for entry in value["decode"])
    assert value["generate_tokens_per_s"] > 0
    assert value["graphs"][0]["graphs_per_s"] > 0
    assert len(told) == 4


def test_the_plain_engine_leaves_the_attention_as_it_was(tiny: LocalEngine) -> None:
    before = tiny.config._attn_implementation
    with tiny.plain() as plain:
        calls: list[Call] = []
        graph = SMALL.build(tiny.codec)
        inputs = {"task": SMALL.task(tiny.codec, 0)}
        scheduler = Scheduler(plain, graph, Dense(), inputs=inputs, seed=0)
        asyncio.run(scheduler.run(Recorder(None), calls))
    assert tiny.config._attn_implementation == before
    assert len(calls) == 3


@pytest.mark.parametrize("layout", ["role-first", "shared-first"])
def test_layouts_hold_the_same_texts(smol: LocalEngine, layout: str) -> None:
    graph = SMALL.build(smol.codec, layout)  # type: ignore[arg-type]
    names = set(graph.template("agent3", smol.codec).names)
    assert names == {"task", "agent1", "agent2"}
