"""Reading the work of a real trace, and simulating what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm import Session
from kvcomm.agents import Tool, critic, editor, judge, solver
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph, chain, debate
from kvcomm.plan.provenance import notes
from kvcomm.plan.simulate import Fleet, estimate
from kvcomm.plan.workload import Work, modes_of, read_work
from kvcomm.trace.read import TraceRun, read_trace
from tests.plan.works import SIMPLE

TASK = "A baker makes 7 trays of 12 rolls and sells 59 of them. How many rolls are left?"


def traced(
    engine: LocalEngine, graph: AgentGraph, mode: str, folder: Path, runs: int = 1
) -> TraceRun:
    with Session(engine, reuse=mode, state=None, runs=folder) as session:
        for _ in range(runs):
            result = session.run(graph, TASK)
    assert result.trace.path is not None
    return read_trace(result.trace.path / "trace.jsonl")


def members() -> list:
    return [make(max_tokens=20) for make in (solver, critic, editor)]


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_a_chain_is_simulated_as_it_ran(tiny: LocalEngine, tmp_path: Path, mode: str) -> None:
    """The same prompts, answers and counts by source, from the trace of the other mode too."""
    run = traced(tiny, chain(*members()), mode, tmp_path)
    work = read_work(run)
    assert work.answer == "editor"
    assert work.calls["critic"].senders == ("solver",)
    assert all(c.limit == 20 for c in work.calls.values())
    calls = estimate(work, mode, Fleet(SIMPLE)).graphs[0].calls
    for view in run.last_calls():
        assert view.call is not None
        done = calls[view.node]
        assert done.prompt == view.prompt_tokens
        assert done.sampled == view.call.output_tokens + (view.call.stop == "stop")
        assert (done.computed, done.prefix) == (view.tokens["computed"], view.tokens["prefix"])


def test_a_debate_shares_prefixes_as_it_did(tiny: LocalEngine, tmp_path: Path) -> None:
    graph = debate(
        solver(max_tokens=12), solver("solver2", max_tokens=12), judge=judge(max_tokens=12)
    )
    run = traced(tiny, graph, "exact", tmp_path)
    calls = estimate(read_work(run), "exact", Fleet(SIMPLE)).graphs[0].calls
    true = {view.node: view.tokens for view in run.last_calls()}
    # The second asks the same.
    assert calls["solver2@1"].prefix == calls["solver2@1"].prompt - 1
    assert true["solver2@1"]["prefix"] + true["solver@1"]["prefix"] == 218
    assert (calls["judge"].computed, calls["judge"].prefix) == (true["judge"]["computed"], 0)


def test_what_was_realigned_is_told_by_its_own_trace_only(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    run = traced(tiny, chain(*members()), "kvcomm", tmp_path, runs=4)
    work = read_work(run)
    assert modes_of(work, None) == ["dense", "exact", "kvcomm"]
    calls = estimate(work, "kvcomm", Fleet(SIMPLE)).graphs[0].calls
    for view in run.last_calls():
        assert calls[view.node].computed == view.tokens["computed"]
    said = "\n".join(notes(work, ["kvcomm"], Fleet(SIMPLE), "other"))
    assert "of 3 calls realigned" in said
    exact = read_work(traced(tiny, chain(*members()), "exact", tmp_path))
    assert modes_of(exact, "exact") == ["exact"]
    with pytest.raises(UsageError, match="--reuse kvcomm"):
        modes_of(exact, "kvcomm")
    with pytest.raises(UsageError, match="'fast' is unknown"):
        modes_of(exact, "dense, fast")


def test_tools_are_part_of_the_work(tiny: LocalEngine, tmp_path: Path) -> None:
    finder = Tool("finder", lambda texts: "Rolls are sold by the dozen.")
    graph = AgentGraph([finder, solver(max_tokens=8)], [("finder", "solver")])
    work: Work = read_work(traced(tiny, graph, "exact", tmp_path))
    assert work.early == {"finder"}
    assert work.tools["finder"].texts["finder"] > 0
    done = estimate(work, "exact", Fleet(SIMPLE)).graphs[0].calls["solver"]
    assert done.ready_at == pytest.approx(work.tools["finder"].seconds)


def test_a_run_that_was_cut_off_is_refused(tiny: LocalEngine, tmp_path: Path) -> None:
    run = traced(tiny, chain(*members()), "dense", tmp_path)
    lines = run.path.read_text("utf-8").splitlines()
    cut = [line for line in lines if '"kind":"call","node":"editor"' not in line.replace(" ", "")]
    shorter = [line for line in cut if not ('"kind":"call"' in line and '"node":"editor"' in line)]
    run.path.write_text("\n".join(shorter), encoding="utf-8")
    with pytest.raises(UsageError, match="`editor` has not answered"):
        read_work(read_trace(run.path))
