"""What an evaluation came to: one mode alone, and two modes on the same samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvcomm.tasks.intervals import of_difference, of_ratio, of_score
from kvcomm.tasks.record import CallRow, Config, Sample
from kvcomm.tasks.scoring.code import pass_at_k


def whole_summary(config: Config, samples: Sequence[Sample], out: Path) -> dict[str, Any]:
    """The object of `kvcomm eval --json`: the first mode, all modes, and their comparisons.

    A comparison takes the samples that both modes have done; those of the warm-up count nowhere.
    """
    samples = [sample for sample in samples if not sample.warmup]
    by_mode = {mode: [s for s in samples if s.mode == mode] for mode in config.modes}
    modes = {mode: summary_of(found, config.seed) for mode, found in by_mode.items()}
    first, *others = config.modes
    comparisons = []
    for mode in config.modes if config.baselines else (first,):
        for other in config.baselines or others:
            done = {sample.key[:2]: sample for sample in by_mode[other]}
            both = [sample for sample in by_mode[mode] if sample.key[:2] in done]
            if both and mode not in (config.baselines or others):
                found = comparison(both, [done[sample.key[:2]] for sample in both])
                comparisons.append({"first": mode, **found})
    return {
        "suite": config.suite,
        "graph": config.graph,
        "model": config.model,
        "mode": first,
        **modes[first],
        "compare": comparisons[0] if comparisons else None,
        "modes": modes,
        "agent_count": config.agent_count,
        "warmup": config.warmup,
        "comparisons": comparisons,
        "gamma": config.gamma,
        "anchors": config.anchors,
        "conditions": [conditions.model_dump() for conditions in config.conditions],
        "complete": len(samples) == config.tasks * config.repeats * len(config.modes),
        "out": str(out),
    }


def _groups(samples: Sequence[Sample], name: str) -> dict[Any, list[Sample]]:
    """Samples by one of their fields."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(getattr(sample, name), []).append(sample)
    return groups


def summary_of(samples: Sequence[Sample], seed: int = 0) -> dict[str, Any]:
    """Score, reuse and times of the samples of one mode.

    `ci95` counts a task once, whatever its repeats. `token_reuse` is the share of prompt tokens
    that were not computed, `call_reuse` (the paper's) the share of calls that were realigned.
    `ttft_s` is the median over the answering agent's calls, `agents` the same for every agent, and
    `by_agent` has its tokens too. `seed` is that of the first repeat.
    """
    calls = _calls(samples)
    by_agent = {
        node: _agent([call for call in calls if call.node == node])
        for node in dict.fromkeys(call.node for call in calls)
    }
    last = [sample.calls[-1].ttft_s for sample in samples if sample.calls]
    audits = [value for sample in samples for value in sample.audits]
    names = dict.fromkeys(name for sample in samples for name in sample.metrics)
    return {
        "samples": len(samples),
        "score": _mean([sample.value for sample in samples]),
        "ci95": of_score(_by_task(samples)),
        "metrics": {name: _mean([s.metrics.get(name, 0.0) for s in samples]) for name in names},
        **_pass(samples),
        "token_reuse": _token_reuse(calls),
        "call_reuse": _call_reuse(calls),
        "ttft_s": statistics.median(last) if last else None,
        "agents": {node: found["ttft_s"] for node, found in by_agent.items()},
        "by_agent": by_agent,
        "repeats": _repeats(samples, seed),
        "wall_s": sum(sample.wall_s for sample in samples),
        "audits": {"count": len(audits), "mean": _mean(audits) if audits else None},
        "errors": sum(bool(sample.error) for sample in samples),
        "retried": sum(sample.tries > 1 for sample in samples),
    }


def _agent(calls: Sequence[CallRow]) -> dict[str, Any]:
    """The calls of one agent: mean length of their prompts, what became of them, and time."""
    tokens = sum(call.prompt_tokens for call in calls) or 1
    return {
        "calls": len(calls),
        "prompt_tokens": _mean([call.prompt_tokens for call in calls]),
        "computed_share": sum(call.computed_tokens for call in calls) / tokens,
        "realigned_share": sum(call.realigned_tokens for call in calls) / tokens,
        "call_reuse": _call_reuse(calls),
        "ttft_s": statistics.median(call.ttft_s for call in calls),
    }


def _repeats(samples: Sequence[Sample], seed: int) -> dict[str, Any] | None:
    """The mean score of every repeat that is complete, and how they spread; None for one."""
    groups = dict(sorted(_groups(samples, "repeat").items()))
    whole = max(map(len, groups.values()), default=0)
    means = {n: _mean([s.value for s in g]) for n, g in groups.items() if len(g) == whole}
    if len(means) < 2:
        return None
    scores = list(means.values())
    spread = {"mean": _mean(scores), "sd": statistics.stdev(scores)}
    return {"seeds": [seed + n for n in means], "scores": scores, **spread}


def _by_task(samples: Sequence[Sample]) -> list[float]:
    """The mean of every task's values: repeats of one task are no samples of their own."""
    return [_mean([s.value for s in group]) for group in _groups(samples, "task").values()]


def _pass(samples: Sequence[Sample]) -> dict[str, Any]:
    """pass@1 and pass@n over the repeats of every task that has all of them, where several are."""
    groups = _groups(samples, "task").values()
    repeats = max(map(len, groups), default=0)
    if repeats < 2:
        return {}
    right = [sum(s.correct for s in group) for group in groups if len(group) == repeats]
    return {f"pass@{k}": _mean([pass_at_k(repeats, n, k) for n in right]) for k in (1, repeats)}


def comparison(samples: Sequence[Sample], other: Sequence[Sample]) -> dict[str, Any]:
    """The first mode against the second, on the same samples in the same order.

    `difference` is first minus second with its 95 % interval for pairs (Newcombe's of two shares,
    else the bootstrap's; a task counts once); `p_value` is McNemar's exact test on the samples that
    only one got right; `consistency` holds the shares of equal answers (`answer`) and, where both
    chose among agents they heard, of equal choices (`judge`). `ttft_ratio` is how many times longer
    the second mode takes to the answering agent's first token: below 1 the first is the slower.
    """
    pairs = list(zip(samples, other, strict=True))
    assert all(a.key[:2] == b.key[:2] for a, b in pairs)
    judged = [float(a.chosen == b.chosen) for a, b in pairs if a.chosen or b.chosen]
    scores = zip(_by_task(samples), _by_task(other), strict=True)
    times = [(b.calls[-1].ttft_s, a.calls[-1].ttft_s) for a, b in pairs if a.calls and b.calls]
    ratio, interval = None, None
    if times and all(min(pair) > 0 for pair in times):
        theirs, mine = zip(*times, strict=True)
        ratio = float(statistics.median(theirs) / statistics.median(mine))
        interval = of_ratio(times)
    return {
        "mode": other[0].mode,
        "score": _mean([b.value for b in other]),
        "difference": _mean([a.value - b.value for a, b in pairs]),
        "ci95": of_difference(list(scores)),
        "p_value": mcnemar(
            sum(a.correct and not b.correct for a, b in pairs),
            sum(b.correct and not a.correct for a, b in pairs),
        ),
        "consistency": {
            "answer": _mean([float(_same(a, b)) for a, b in pairs]),
            "judge": _mean(judged) if judged else None,
        },
        "ttft_ratio": ratio,
        "token_reuse": _token_reuse(_calls(other)),
        "samples": len(pairs),
        "ttft_ratio_ci95": interval,
    }


def _same(a: Sample, b: Sample) -> bool:
    """Whether both read as the same answer; texts decide where nothing could be read."""
    return a.extracted == b.extracted and (bool(a.extracted) or a.answer == b.answer)


def _calls(samples: Sequence[Sample]) -> list[CallRow]:
    return [call for sample in samples for call in sample.calls]


def _token_reuse(calls: Sequence[CallRow]) -> float:
    """The share of prompt tokens that were not computed."""
    prompt = sum(call.prompt_tokens for call in calls)
    return 1 - sum(call.computed_tokens for call in calls) / prompt if prompt else 0.0


def _call_reuse(calls: Sequence[CallRow]) -> float:
    """The share of calls that were realigned."""
    return _mean([float(call.realigned_tokens > 0) for call in calls])


def mcnemar(first: int, second: int) -> float:
    """The two-sided exact p of McNemar's test: `first` and `second` count what only one got right.

    Under the null hypothesis each of these pairs falls either way like a coin.
    """
    pairs = first + second
    tail = sum(math.comb(pairs, k) for k in range(min(first, second) + 1))
    return float(min(1.0, 2 * tail / 2**pairs))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
