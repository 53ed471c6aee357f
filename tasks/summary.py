"""What an evaluation came to: one mode alone, and two modes on the same samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvcomm.tasks.record import Config, Sample
from kvcomm.tasks.scoring.code import pass_at_k

RESAMPLES = 10_000


def whole_summary(config: Config, samples: Sequence[Sample], out: Path) -> dict[str, Any]:
    """The object of `kvcomm eval --json`: the first mode, all modes, and their comparison.

    A comparison takes the samples that both modes have done; those of the warm-up count nowhere.
    """
    samples = [sample for sample in samples if not sample.warmup]
    by_mode = {mode: [s for s in samples if s.mode == mode] for mode in config.modes}
    modes = {mode: summary_of(found) for mode, found in by_mode.items()}
    first, *others = config.modes
    compare = None
    for other in others:
        done = {sample.key[:2]: sample for sample in by_mode[other]}
        mine = [sample for sample in by_mode[first] if sample.key[:2] in done]
        if mine:
            compare = comparison(mine, [done[sample.key[:2]] for sample in mine])
    return {
        "suite": config.suite,
        "graph": config.graph,
        "model": config.model,
        "mode": first,
        **modes[first],
        "compare": compare,
        "modes": modes,
        "warmup": config.warmup,
        "complete": len(samples) == config.tasks * config.repeats * len(config.modes),
        "out": str(out),
    }


def summary_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Score, reuse and times of the samples of one mode.

    `token_reuse` is the share of prompt tokens that were not computed, `call_reuse` (the paper's)
    the share of calls that were realigned. `ttft_s` is the median over the answering agent's
    calls, `agents` the same for every agent.
    """
    calls = [call for sample in samples for call in sample.calls]
    nodes = dict.fromkeys(call.node for call in calls)
    times = {n: statistics.median(c.ttft_s for c in calls if c.node == n) for n in nodes}
    audits = [value for sample in samples for value in sample.audits]
    names = dict.fromkeys(name for sample in samples for name in sample.metrics)
    return {
        "samples": len(samples),
        "score": _mean([sample.value for sample in samples]),
        "ci95": interval([sample.value for sample in samples]),
        "metrics": {name: _mean([s.metrics.get(name, 0.0) for s in samples]) for name in names},
        **_pass(samples),
        "token_reuse": _token_reuse(samples),
        "call_reuse": sum(call.realigned_tokens > 0 for call in calls) / len(calls)
        if calls
        else 0.0,
        "ttft_s": _ttft(samples),
        "agents": times,
        "wall_s": sum(sample.wall_s for sample in samples),
        "audits": {"count": len(audits), "mean": _mean(audits) if audits else None},
        "errors": sum(bool(sample.error) for sample in samples),
        "retried": sum(sample.tries > 1 for sample in samples),
    }


def _pass(samples: Sequence[Sample]) -> dict[str, Any]:
    """pass@1 and pass@n over the repeats of every task, where there are several."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    repeats = max(map(len, by_task.values()), default=0)
    if repeats < 2:
        return {}
    counts = [(len(group), sum(s.correct for s in group)) for group in by_task.values()]
    return {
        f"pass@{k}": _mean([pass_at_k(n, right, k) for n, right in counts]) for k in (1, repeats)
    }


def comparison(samples: Sequence[Sample], other: Sequence[Sample]) -> dict[str, Any]:
    """The first mode against the second, on the same samples in the same order.

    `difference` is first minus second with its 95 % paired bootstrap interval; `p_value` is
    McNemar's exact test on the samples that only one got right; `consistency` holds the shares of
    equal answers (`answer`) and, where both chose among agents they heard, of equal choices
    (`judge`).
    """
    pairs = list(zip(samples, other, strict=True))
    assert all(a.key[:2] == b.key[:2] for a, b in pairs)
    differences = [a.value - b.value for a, b in pairs]
    judged = [(a.chosen, b.chosen) for a, b in pairs if a.chosen or b.chosen]
    return {
        "mode": other[0].mode,
        "score": _mean([b.value for b in other]),
        "difference": _mean(differences),
        "ci95": interval(differences),
        "p_value": mcnemar(
            sum(a.correct and not b.correct for a, b in pairs),
            sum(b.correct and not a.correct for a, b in pairs),
        ),
        "consistency": {
            "answer": _mean([float(_same(a, b)) for a, b in pairs]),
            "judge": _mean([float(a == b) for a, b in judged]) if judged else None,
        },
        "ttft_ratio": _ratio(_ttft(samples), _ttft(other)),
        "token_reuse": _token_reuse(other),
    }


def _same(a: Sample, b: Sample) -> bool:
    """Whether both read as the same answer; texts decide where nothing could be read."""
    if a.extracted or b.extracted:
        return a.extracted == b.extracted
    return a.answer == b.answer


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return theirs / mine if mine and theirs else None


def _ttft(samples: Sequence[Sample]) -> float | None:
    """The median time to the answering agent's first token."""
    last = [sample.calls[-1].ttft_s for sample in samples if sample.calls]
    return statistics.median(last) if last else None


def _token_reuse(samples: Sequence[Sample]) -> float:
    """The share of prompt tokens that were not computed."""
    calls = [call for sample in samples for call in sample.calls]
    prompt = sum(call.prompt_tokens for call in calls)
    return 1 - sum(call.computed_tokens for call in calls) / prompt if prompt else 0.0


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean (percentiles of seeded resamples)."""
    if not values:
        return (0.0, 0.0)
    draw = np.random.default_rng(seed)
    array = np.asarray(values, dtype=float)
    means = [
        array[draw.integers(0, len(array), (500, len(array)))].mean(axis=1)
        for _ in range(RESAMPLES // 500)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return (float(low), float(high))


def mcnemar(first: int, second: int) -> float:
    """The two-sided exact p of McNemar's test: `first` and `second` count what only one got right.

    Under the null hypothesis each of these pairs falls either way like a coin.
    """
    pairs = first + second
    tail = sum(math.comb(pairs, k) for k in range(min(first, second) + 1))
    return float(min(1.0, 2 * tail / 2**pairs))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
