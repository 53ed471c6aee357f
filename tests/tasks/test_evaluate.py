"""The evaluation loop on a tiny model: several at once, logged, resumed, failures kept."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kvcomm.agents import Agent, Sampling, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph, chain
from kvcomm.reuse.policy import Anchors
from kvcomm.tasks import Graders, Suite, Task
from kvcomm.tasks.evaluate import EvalPlan, Evaluation
from kvcomm.tasks.graders import by_words
from kvcomm.tasks.record import SAMPLES, STATE, Sample, read_config, read_samples
from kvcomm.tasks.scoring import Score
from kvcomm.tasks.summary import whole_summary
from kvcomm.trace.read import read_trace
from tests.codecs import DATED

QUALITY = {"target_divergence": 0.02, "audit_rate": 0.1, "repair_budget": 0.25}


def by_length(task: Task, answer: str, graders: Graders) -> Score:
    """Right when the answer has an even number of characters: tiny models write nonsense."""
    right = len(answer) % 2 == 0
    return Score(float(right), right, str(len(answer)), "counted")


def member(name: str, tokens: int = 10, **fields: Any) -> Agent:
    return Agent(
        name,
        system=f"You are {name}.",
        prompt="{task}\n\n{messages}\n\nGo on.",
        sampling=Sampling(max_tokens=tokens),
        **fields,
    )


GRAPH = chain(member("a"), member("b"))
SUITE = Suite("mine", "made up", lambda row, name: Task(name, "x", "y"), by_length, lambda g: GRAPH)
TASKS = [Task(f"t{n}", f"What is {n} + {n}?", str(2 * n)) for n in range(6)]


def plan(**fields: Any) -> EvalPlan:
    return EvalPlan(
        **{"suite": SUITE, "tasks": TASKS, "graph": GRAPH, "modes": ("exact",), **fields}
    )


def evaluate(
    engine: LocalEngine,
    made: EvalPlan,
    out: Path,
    on_sample: Callable[[Sample], None] = lambda sample: None,
    now: datetime | None = None,
) -> list[Sample]:
    with Graders() as graders:
        evaluation = Evaluation(
            engine, made, graders, out, quality=QUALITY, on_sample=on_sample, now=now
        )
        return asyncio.run(evaluation.run())


def answers(samples: list[Sample]) -> dict[tuple[str, int, str], tuple[str, bool]]:
    return {sample.key: (sample.answer, sample.correct) for sample in samples}


class Stopped(Exception):
    pass


def stopped(
    engine: LocalEngine, made: EvalPlan, out: Path, count: int, now: datetime | None = None
) -> None:
    """Begin an evaluation and end it when it has told of so many samples."""
    left = itertools.count(1)

    def stop(sample: Sample) -> None:
        if next(left) == count:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(engine, made, out, stop, now)


def test_every_task_is_done_and_kept_with_its_trace(tiny: LocalEngine, tmp_path: Path) -> None:
    heard: list[Sample] = []
    samples = evaluate(tiny, plan(), tmp_path, heard.append)
    assert [sample.task for sample in samples] == [task.id for task in TASKS]
    assert sorted(s.task for s in heard) == sorted(s.task for s in samples)
    assert answers(read_samples(tmp_path / SAMPLES)) == answers(samples)
    for sample in samples:
        assert [call.node for call in sample.calls] == ["a", "b"]
        trace = read_trace(tmp_path / sample.trace / "trace.jsonl")
        assert trace.finished
        assert trace.finished.answer == sample.answer


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny: LocalEngine, tmp_path: Path) -> None:
    whole = evaluate(tiny, plan(), tmp_path / "whole")
    stopped(tiny, plan(), tmp_path / "cut", 3)
    path = tmp_path / "cut" / SAMPLES
    before = read_samples(path)
    assert 3 <= len(before) < len(TASKS)
    path.write_bytes(path.read_bytes() + b'{"task": "t5", "rep')  # killed in the middle of a line
    heard: list[Sample] = []
    samples = evaluate(tiny, plan(), tmp_path / "cut", heard.append)
    assert answers(samples) == answers(whole)
    assert len(read_samples(path)) == len(TASKS)
    assert [sample.key for sample in heard[: len(before)]] == [sample.key for sample in before]
    assert evaluate(tiny, plan(), tmp_path / "cut") == samples  # nothing is left to do


@pytest.mark.parametrize("mode", ["exact", "kvcomm"])
def test_a_run_that_goes_on_the_next_day_has_the_prompts_of_the_first(
    tiny: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(tiny.codec.tokenizer, "chat_template", DATED)
    first, second = datetime(2026, 5, 9, 23, 50, 1, 5), datetime(2026, 5, 10, 0, 10)
    made = plan(modes=(mode,), tasks=TASKS[:4], concurrent=1)
    stopped(tiny, made, tmp_path, 2, first)
    samples = evaluate(tiny, made, tmp_path, now=second)
    assert len(samples) == 4
    assert not any(sample.error for sample in samples)
    assert read_config(tmp_path).now == first
    for sample in samples:
        trace = read_trace(tmp_path / sample.trace / "trace.jsonl")
        prompts = ["".join(trace.text(s) or "" for s in view.steps) for view in trace.calls]
        assert all("Saturday, 09 May 2026" in prompt for prompt in prompts)
    if mode == "exact":
        whole = evaluate(tiny, made, tmp_path / "whole", now=first)
        assert answers(samples) == answers(whole)
    with pytest.raises(UsageError, match="is of another evaluation"):
        evaluate(tiny, plan(modes=(mode,), tasks=TASKS[:3]), tmp_path, now=second)


def test_a_folder_that_names_no_day_goes_on(tiny: LocalEngine, tmp_path: Path) -> None:
    made = plan(tasks=TASKS[:2])
    samples = evaluate(tiny, made, tmp_path)
    older = read_config(tmp_path).model_dump_json(exclude={"now"})
    (tmp_path / "config.json").write_text(f"\ufeff{older}", encoding="utf-8")
    assert evaluate(tiny, made, tmp_path) == samples


def test_two_modes_on_the_same_samples(tiny: LocalEngine, tmp_path: Path) -> None:
    samples = evaluate(tiny, plan(modes=("exact", "dense"), tasks=TASKS[:3]), tmp_path)
    value = whole_summary(read_config(tmp_path), samples, tmp_path)
    assert value["complete"]
    assert value["modes"]["dense"]["token_reuse"] == 0.0
    assert value["modes"]["exact"]["token_reuse"] > 0.0
    assert value["compare"]["difference"] == 0.0
    assert value["compare"]["consistency"]["answer"] == 1.0


def test_only_a_warm_up_that_was_stopped_begins_anew(tiny: LocalEngine, tmp_path: Path) -> None:
    easy = Anchors(gamma=1.0)
    made = plan(modes=("kvcomm",), tasks=TASKS[:2], warmup=TASKS[2:5], anchors=easy, concurrent=1)
    stopped(tiny, made, tmp_path, 2)
    assert read_samples(tmp_path / SAMPLES) == []
    assert not (tmp_path / STATE).exists()
    tiny.forget()
    stopped(tiny, made, tmp_path, 4)
    logged = read_samples(tmp_path / SAMPLES)
    assert [(s.task, s.warmup) for s in logged[:3]] == [(t.id, True) for t in TASKS[2:5]]
    tiny.forget()
    again: list[Sample] = []
    samples = evaluate(tiny, made, tmp_path, again.append)
    assert list((tmp_path / STATE).glob("*.safetensors"))
    assert [sample.task for sample in samples] == ["t0", "t1"]
    assert read_samples(tmp_path / SAMPLES)[: len(logged)] == logged
    assert [s.task for s in again if s.warmup] == [t.id for t in TASKS[2:5]]
    # What the warm-up taught was there: no call of the last command was without anchors.
    assert all(call.realigned_tokens for call in samples[1].calls)


def test_conditions_may_change_and_are_all_kept(tiny: LocalEngine, tmp_path: Path) -> None:
    log, two = tmp_path / SAMPLES, TASKS[:2]
    for concurrent in (1, 1, 2):  # the last one finds nothing left to do
        evaluate(tiny, plan(tasks=two, concurrent=concurrent), tmp_path)
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    evaluate(tiny, plan(tasks=two, concurrent=3, baselines=("exact",)), tmp_path)
    found = read_config(tmp_path)
    assert [conditions.concurrent for conditions in found.conditions] == [1, 3]
    assert {conditions.dtype for conditions in found.conditions} == {tiny.dtype}
    assert (found.agent_count, found.baselines) == (2, ("exact",))


def test_repeats_draw_anew(tiny: LocalEngine, tmp_path: Path) -> None:
    warm = Agent("b", prompt="{task} {a}", sampling=Sampling(max_tokens=10, temperature=1.0))
    made = plan(graph=chain(member("a"), warm), tasks=TASKS[:2], repeats=3)
    samples = evaluate(tiny, made, tmp_path)
    assert [sample.repeat for sample in samples] == [0, 0, 1, 1, 2, 2]
    assert len({sample.answer for sample in samples if sample.task == "t0"}) > 1


def test_a_failure_is_tried_again_and_then_is_wrong(tiny: LocalEngine, tmp_path: Path) -> None:
    tries: list[str] = []

    def odd(texts: Mapping[str, str]) -> str:
        tries.append(texts["task"])
        if "3 + 3" in texts["task"] or (len(tries) == 1 and "0 + 0" in texts["task"]):
            raise OSError("no connection")
        return "fine"

    graph = AgentGraph([Tool("web", odd), member("a")], [("web", "a")])
    samples = evaluate(tiny, plan(graph=graph, concurrent=1), tmp_path)
    failed = {sample.task: sample for sample in samples if sample.error}
    assert list(failed) == ["t3"]
    assert "no connection" in failed["t3"].error
    assert (failed["t3"].tries, failed["t3"].value) == (2, 0.0)
    assert samples[0].tries == 2
    assert not samples[0].error
    # A failure is a sample like others: it is not done again.
    assert evaluate(tiny, plan(graph=graph, concurrent=1), tmp_path) == samples
    assert sum("3 + 3" in text for text in tries) == 2


def test_a_prompt_that_does_not_fit_fails_its_sample(tiny: LocalEngine, tmp_path: Path) -> None:
    tasks = [TASKS[0], Task("long", "word " * 100_000, "x")]
    samples = evaluate(tiny, plan(tasks=tasks), tmp_path)
    assert [bool(sample.error) for sample in samples] == [False, True]
    assert samples[1].tries == 1


def test_what_the_user_can_put_right_stops_everything(tiny: LocalEngine, tmp_path: Path) -> None:
    def refuses(task: Task, answer: str, graders: Graders) -> Score:
        raise UsageError("install it")

    suite = Suite("mine", "", SUITE.read, refuses, SUITE.team)
    with pytest.raises(UsageError, match="install it"):
        evaluate(tiny, plan(suite=suite), tmp_path)
    assert read_samples(tmp_path / SAMPLES) == []


def test_whom_the_last_agent_agreed_with(tiny: LocalEngine, tmp_path: Path) -> None:
    said = {"a": "Answer: 7", "b": "Answer: 8", "c": "So, Answer: 7"}
    agents = [member(name, post=lambda _, text=text: text) for name, text in said.items()]
    graph = AgentGraph(agents, [("a", "c"), ("b", "c")])
    suite = Suite("mine", "", SUITE.read, by_words, SUITE.team)
    made = plan(suite=suite, graph=graph, tasks=[Task("x", "x", "7")])
    (sample,) = evaluate(tiny, made, tmp_path)
    assert (sample.correct, sample.chosen) == (True, ["a"])


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"seed": 1},
            {"anchors": Anchors(gamma=0.5)},
            {"tasks": TASKS[:2]},
            {"warmup": TASKS[3:]},
        ),
        {"graph": chain(member("a"))},
        {"graph": chain(member("a", begins="So:", keep_begins=False), member("b"))},
    ],
)
def test_changed_plans_are_refused(
    tiny: LocalEngine, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = {"tasks": TASKS[:1], "graph": chain(member("a", begins="So:"), member("b"))}
    evaluate(tiny, plan(**first), tmp_path)
    with pytest.raises(UsageError, match="is of another evaluation"):
        evaluate(tiny, plan(**{**first, **change}), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("repeats", 0), ("concurrent", 0), ("retries", -1), ("traces", 2.0)]
)
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        plan(**{field: value})


def test_traces_of_a_share_of_the_samples(tiny: LocalEngine, tmp_path: Path) -> None:
    many = [Task(f"t{n}", f"What is {n}?", "x") for n in range(12)]
    samples = evaluate(tiny, plan(tasks=many, traces=0.5), tmp_path)
    kept = [sample for sample in samples if sample.trace]
    assert 0 < len(kept) < len(samples)
    assert len(list((tmp_path / "traces").iterdir())) == len(kept)
    none = evaluate(tiny, plan(tasks=many[:2], traces=0.0), tmp_path / "none")
    assert [sample.trace for sample in none] == ["", ""]
    assert not (tmp_path / "none" / "traces").exists()
