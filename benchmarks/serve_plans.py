"""The same plans on vLLM and on the engine in this process: how far their log-probabilities differ.

    python benchmarks/serve_plans.py --base-url http://localhost:8000/v1 [--plans 20] [--json]

For every task a producer answers on both engines, and a reader's prompt is realigned from that
answer and from the task as the producer read it, by the same plan: rotated, with leading tokens
computed, at shares that change from task to task. Compared are the log-probabilities of the 20
likeliest tokens behind the prompt, and how far each engine finds its prompt from dense.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvcomm import load_engine, load_served
from kvcomm.bench.workload import Workload
from kvcomm.engine.base import Answer, CallSpec, Variant
from kvcomm.engine.served.audit import told
from kvcomm.graphs import AgentGraph, chain
from kvcomm.message import outgoing
from kvcomm.prompt import Segment
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.sampling import Sampling
from kvcomm.vllm.protocol import salt_of

MODEL = "smollm2-135m"
WORK = Workload(agents=2, prefix=96, input=200, output=160)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)


async def produced(engine: Any, graph: AgentGraph, task: str, space: str) -> list[Segment]:
    """The reader's segments, behind a producer's answer on this engine."""
    templates = graph.templates(engine.codec)
    first, second = graph.nodes
    ids = tuple(engine.codec.encode(task))
    segments = templates[first].fill({"task": ids})
    policy = Exact()
    spec = CallSpec(
        first, templates[first], 2048, WORK.output, policy.options, shares=True, namespace=space
    )
    seq = engine.open(spec)
    await seq.extend(segments, policy, last=Answer(Sampling(max_tokens=WORK.output)))
    tokens = [token.id async for token in seq.answer() if token.last != "stop"]
    message = outgoing(engine.codec, tokens, lambda text: text)
    handle = await seq.publish(message, 1)
    await seq.close()
    names = templates[second].names
    texts = {name: ids if name == "task" else message.ids for name in names}
    heard = {name: handle for name in names if name != "task" and handle}
    return templates[second].fill(texts, heard)


def reader(engine: Any, graph: AgentGraph, policy: Realign, space: str) -> CallSpec:
    """The call of the reader."""
    second = list(graph.nodes)[1]
    template = graph.templates(engine.codec)[second]
    messages = frozenset(name for name in template.names if name != "task")
    return CallSpec(second, template, 4096, 64, policy.options, messages, namespace=space)


async def here(engine: Any, spec: CallSpec, segments: list[Segment], policy: Realign) -> Any:
    """The log-probabilities of all tokens behind the prompt, on the engine in this process."""
    seq = engine.open(spec)
    try:
        last = Answer(Sampling(max_tokens=1), record=True)
        done = await seq.extend(segments, policy, last=last)
        _ = [token async for token in seq.answer()]
        return seq.state.answering.record[0].double().log_softmax(-1), done
    finally:
        await seq.close()


async def there(engine: Any, spec: CallSpec, segments: list[Segment], policy: Realign) -> Any:
    """Those of the likeliest tokens, on the server."""
    seq = engine.open(replace(spec, reuse=replace(spec.reuse, publishes=False)))
    try:
        done = await seq.extend(segments, policy, ends=True)
        request = seq.request(keep=False)
        answer = await engine.asked(
            lambda: {
                "model": engine.model,
                "prompt": [i for segment in segments for i in segment.ids],
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": 20,
                "return_tokens_as_token_ids": True,
                "kv_transfer_params": request.to_json(),
                **engine.abilities.fields(salt_of(request.row)),
            }
        )
        return told(answer)[1][0], done
    finally:
        await seq.close()


async def compare(local: Any, served: Any, plans: int) -> dict[str, Any]:
    """Both engines on the same plans."""
    graph = chain(*(node.agent for node in WORK.build(local.codec).nodes.values()))
    gaps: list[float] = []
    kls: list[tuple[float, float]] = []
    positions = 0
    for number in range(plans):
        task, space = WORK.task(local.codec, number), f"plans {number}"
        recipe = Recipe("plan", short=8, first=1 << 20, leading=SHARES[number % len(SHARES)])
        policy = Realign(recipe, borrows=True)
        both = [await produced(engine, graph, task, space) for engine in (local, served)]
        if [s.ids for s in both[0]] != [s.ids for s in both[1]]:
            print(f"task {number}: the producers said different things; left out", flush=True)
            continue
        mine, plan = await here(local, reader(local, graph, policy, space), both[0], policy)
        named, other = await there(served, reader(served, graph, policy, space), both[1], policy)
        assert _planned(plan.segments) == _planned(other.segments)
        positions += sum(usage.realigned for usage in plan.segments)
        gaps.append(max(abs(float(mine[token]) - value) for token, value in named.items()))
        found = []
        for engine, segments in zip((local, served), both, strict=True):
            spec = reader(engine, graph, policy, space)
            audit = await engine.evaluate(spec, segments, [Variant(policy)], distinct=False)
            found.append(audit.variants[0].divergence.mean)
        kls.append((found[0], found[1]))
        print(
            f"task {number}: {gaps[-1]:.1e}, from dense {found[0]:.5f} {found[1]:.5f}", flush=True
        )
    return {
        "plans": len(gaps),
        "realigned_tokens": positions,
        "largest_logprob_difference": max(gaps),
        "divergence_local": statistics.fmean(one for one, _ in kls),
        "divergence_served": statistics.fmean(two for _, two in kls),
        "largest_divergence_difference": max(abs(one - two) for one, two in kls),
    }


def _planned(segments: Sequence[Any]) -> list[Any]:
    return [(s.index, s.source, s.realigned, s.positions) for s in segments]


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--base-url", required=True)
    options.add_argument("--plans", type=int, default=20)
    given = options.parse_args()
    with (
        load_engine(MODEL, device="cpu", dtype="float32") as local,
        load_served(given.base_url, MODEL) as served,
    ):
        print(json.dumps(asyncio.run(compare(local, served, given.plans)), indent=1))


if __name__ == "__main__":
    main()
