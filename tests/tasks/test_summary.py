"""Summaries and comparisons of samples made by hand, against slow references."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.intervals import newcombe, of_mean, wilson
from kvcomm.tasks.record import CallRow, Sample
from kvcomm.tasks.summary import comparison, mcnemar, summary_of, whole_summary
from tests.tasks.test_record import config


def call(node: str = "judge", prompt: int = 100, computed: int = 40, **fields: Any) -> CallRow:
    known = {"node": node, "prompt_tokens": prompt, "computed_tokens": computed}
    known |= {"realigned_tokens": 60, "output_tokens": 9, "ttft_s": 0.5}
    return CallRow(**known | fields)


def sample(task: str, correct: bool, mode: str = "exact", **fields: Any) -> Sample:
    known = {"task": task, "repeat": 0, "mode": mode, "extracted": "1" if correct else "2"}
    return Sample(**known | {"value": float(correct), "correct": correct} | fields)


def test_score_reuse_and_times() -> None:
    found = summary_of(
        [
            sample("a", True, calls=[call("solver", 50, 50, realigned_tokens=0), call(ttft_s=0.2)]),
            sample("b", False, calls=[call("solver", 50, 0), call(ttft_s=0.4)], tries=2),
            sample("c", False, error="it broke"),
        ]
    )
    assert found["samples"] == 3
    assert found["score"] == pytest.approx(1 / 3)
    assert found["token_reuse"] == pytest.approx(1 - 130 / 300)
    assert found["call_reuse"] == pytest.approx(3 / 4)
    assert found["ttft_s"] == pytest.approx(0.3)
    assert found["agents"] == {"solver": 0.5, "judge": pytest.approx(0.3)}
    assert (found["errors"], found["retried"]) == (1, 1)


def test_audits_metrics_and_pass_at_k_of_repeats() -> None:
    repeats = [
        sample("a", True, audits=[0.01, 0.03], metrics={"em": 1.0, "f1": 1.0}),
        sample("a", False, repeat=1, metrics={"em": 0.0, "f1": 0.5}),
        sample("a", False, repeat=2),
        *(sample("b", False, repeat=n) for n in range(3)),
    ]
    found = summary_of(repeats)
    assert found["pass@1"] == pytest.approx(1 / 6)
    assert found["pass@3"] == pytest.approx(1 / 2)
    assert found["audits"] == {"count": 2, "mean": pytest.approx(0.02)}
    assert found["metrics"] == {"em": pytest.approx(1 / 6), "f1": 0.25}
    assert "pass@1" not in summary_of([sample("a", True)])


def test_a_comparison() -> None:
    mine = [
        sample("a", True, calls=[call(ttft_s=0.1)], chosen=["s1"]),
        sample("b", False, calls=[call(ttft_s=0.1)], chosen=["s2"]),
        sample("c", True, calls=[call(ttft_s=0.1)]),
    ]
    other = [
        sample("a", True, "dense", calls=[call()], chosen=["s1"]),
        sample("b", True, "dense", calls=[call()], chosen=["s1"]),
        sample("c", True, "dense", calls=[call()]),
    ]
    found = comparison(mine, other)
    assert found["difference"] == pytest.approx(-1 / 3)
    assert found["ci95"] == newcombe(2, 0, 1, 0)
    assert found["p_value"] == 1.0
    assert found["consistency"] == {"answer": pytest.approx(2 / 3), "judge": pytest.approx(1 / 2)}
    assert found["ttft_ratio"] == pytest.approx(5.0)


@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_is_the_share_of_coins_as_uneven(first: int, second: int) -> None:
    throws = list(itertools.product((0, 1), repeat=first + second))
    gap = abs(first - second)
    as_uneven = sum(abs(2 * sum(throw) - len(throw)) >= gap for throw in throws)
    assert mcnemar(first, second) == pytest.approx(as_uneven / len(throws))


def test_the_interval_of_a_score_is_wilsons_and_counts_a_task_once() -> None:
    wrong = [sample(f"t{n}", False) for n in range(12)]
    assert summary_of(wrong)["ci95"] == wilson(0, 12)
    again = [s.model_copy(update={"repeat": 1}) for s in wrong]
    assert summary_of([*wrong, *again])["ci95"] == wilson(0, 12)
    partly = [sample("a", False, value=0.5), sample("b", True), sample("c", False)]
    assert summary_of(partly)["ci95"] == of_mean([0.5, 1.0, 0.0])


def test_repeats_have_a_mean_and_a_spread() -> None:
    samples = [
        sample(task, right, repeat=n)
        for n, rights in enumerate(((True, True), (True, False)))
        for task, right in zip("ab", rights, strict=True)
    ]
    samples.append(sample("a", False, repeat=2))  # not finished: another set of tasks
    found = summary_of(samples, seed=7)["repeats"]
    known = {"seeds": [7, 8], "scores": [1.0, 0.5], "mean": 0.75}
    assert found == known | {"sd": pytest.approx(0.5 / 2**0.5)}
    assert summary_of(samples[:2])["repeats"] is None
    assert summary_of(samples)["pass@3"] == 1.0  # of the only task with three


def test_what_became_of_each_agents_tokens() -> None:
    calls = [call("solver", 50, 50, realigned_tokens=0), call("judge", 100, 40)]
    more = [call("solver", 150, 10, realigned_tokens=30), call("judge", 300, 60)]
    found = summary_of([sample("a", True, calls=calls), sample("b", True, calls=more)])["by_agent"]
    assert found["solver"] == {
        "calls": 2,
        "prompt_tokens": 100.0,
        "call_reuse": 0.5,
        "ttft_s": 0.5,
        "computed_share": pytest.approx(0.3),
        "realigned_share": pytest.approx(0.15),
    }
    assert found["judge"]["computed_share"] == pytest.approx(100 / 400)


def timed(mode: str, *times: float) -> list[Sample]:
    return [sample(f"t{n}", True, mode, calls=[call(ttft_s=time)]) for n, time in enumerate(times)]


def test_times_are_compared_over_the_same_samples() -> None:
    found = comparison(timed("exact", 0.2, 0.4, 0.3), timed("dense", 0.1, 0.2, 0.15))
    assert found["ttft_ratio"] == pytest.approx(0.5)
    assert found["ttft_ratio_ci95"] == pytest.approx((0.5, 0.5))
    mine = [*timed("exact", 0.2), sample("t1", False, error="it broke")]
    found = comparison(mine, timed("dense", 0.1, 9.0))
    assert (found["ttft_ratio"], found["ttft_ratio_ci95"]) == (pytest.approx(0.5), None)


def test_every_mode_is_compared_with_every_baseline(tmp_path: Path) -> None:
    modes = ("auto", "kvcomm", "dense", "exact")
    samples = [sample("a", mode != "dense", mode) for mode in modes]
    samples.append(sample("w", False, "auto", warmup=True))

    def compared(**fields: Any) -> str:
        value = whole_summary(config(modes=modes, tasks=1, **fields), samples, tmp_path)
        assert (value["complete"], value["samples"]) == (True, 1)
        assert value["compare"] == value["comparisons"][0]
        return " ".join(f"{found['first']}/{found['mode']}" for found in value["comparisons"])

    both = "auto/dense auto/exact kvcomm/dense kvcomm/exact"
    assert compared(baselines=("dense", "exact")) == both
    assert compared() == "auto/kvcomm auto/dense auto/exact"
