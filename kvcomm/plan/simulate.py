"""Graphs on replicas, in one mode: a discrete-event simulation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import simpy

from kvcomm.plan.hardware import Hardware
from kvcomm.plan.memory import Memory
from kvcomm.plan.node import Books, Draft, Node, use_tool
from kvcomm.plan.replica import Replica, Waiting
from kvcomm.plan.workload import Work


@dataclass(frozen=True)
class Fleet:
    """`replicas` of one hardware; `concurrent` graphs in flight over all, `graphs` in the end.

    `kv_memory` is the most for all KV of a replica, in bytes (None: the engine's default).
    """

    hardware: Hardware
    replicas: int = 1
    concurrent: int = 1
    graphs: int = 1
    kv_memory: float | None = None


@dataclass(frozen=True)
class GraphRun:
    """One graph: when it began and answered, and its calls."""

    began: float
    ended: float
    calls: dict[str, Books]


@dataclass(frozen=True)
class Estimate:
    """What a mode would take: seconds, tokens and bytes, over all graphs."""

    mode: str
    answer: str
    graphs: tuple[GraphRun, ...]
    seconds: float
    peak_bytes: float
    busy: float
    computed: int  # prompt tokens, as the loops counted them

    def to_json(self) -> dict[str, Any]:
        """The numbers of one mode in `kvcomm plan --json`."""
        calls = [call for graph in self.graphs for call in graph.calls.values()]
        last = [graph.calls[self._last(graph)].ttft_s for graph in self.graphs]
        ends = [graph.ended - graph.began for graph in self.graphs]
        return {
            "ttft_s": {"median": statistics.median(last), "p95": _p95(last)},
            "end_to_end_s": {"median": statistics.median(ends), "p95": _p95(ends)},
            "graphs_per_s": len(self.graphs) / self.seconds,
            "tokens_per_s": sum(call.sampled for call in calls) / self.seconds,
            "peak_kv_bytes": round(self.peak_bytes),
            "utilisation": self.busy,
            "prompt_tokens": sum(call.prompt for call in calls),
            "computed_tokens": sum(call.computed for call in calls),
            "prefix_tokens": sum(call.prefix for call in calls),
            "realigned_tokens": sum(call.realigned for call in calls),
            "redone_tokens": sum(call.redone for call in calls),
        }

    def _last(self, graph: GraphRun) -> str:
        """The agent that answers; where a tool does, the one that ends last."""
        if self.answer in graph.calls:
            return self.answer
        return max(graph.calls, key=lambda name: graph.calls[name].finished_at)


def _p95(values: list[float]) -> float:
    """The smallest value that 95 % of them do not exceed."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def estimate(work: Work, mode: str, fleet: Fleet) -> Estimate:
    """Simulate `fleet.graphs` graphs in a mode: "dense", "exact", or the trace's own."""
    env = simpy.Environment()
    hardware = fleet.hardware
    limit = hardware.kv_memory if fleet.kv_memory is None else fleet.kv_memory
    own = mode not in ("dense", "exact")
    texts = sum(not piece.literal for call in work.calls.values() for piece in call.pieces)
    fixed = hardware.offset_bytes * texts if own else 0
    replicas = [
        Replica(
            env,
            hardware,
            Memory(env, limit, hardware.kv_bytes, work.shared, work.across, fixed),
        )
        for _ in range(fleet.replicas)
    ]
    runs: list[GraphRun] = []
    loads = [0] * fleet.replicas
    numbers = iter(range(fleet.graphs))

    def user() -> Waiting:
        """Someone who asks for the next graph when one has answered."""
        for number in numbers:
            place = loads.index(min(loads))
            loads[place] += 1
            runs.append((yield from _graph(env, work, mode, fleet, replicas[place], number)))
            loads[place] -= 1

    users = [env.process(user()) for _ in range(min(fleet.concurrent, fleet.graphs))]
    env.run(env.all_of(users))
    seconds = env.now
    busy = sum(replica.busy for replica in replicas) / (fleet.replicas * seconds)
    peak = max(replica.memory.peak for replica in replicas)
    computed = sum(replica.computed for replica in replicas)
    return Estimate(mode, work.answer, tuple(runs), seconds, peak, busy, computed)


def _graph(
    env: simpy.Environment, work: Work, mode: str, fleet: Fleet, replica: Replica, number: int
) -> Waiting:
    """One whole graph on one replica."""
    began = env.now
    drafts = dict(_drafts(env, work))
    own = mode not in ("dense", "exact")
    nodes = [
        Node(
            env,
            replica,
            number,
            call,
            drafts,
            call.way if own else mode,
            fleet.hardware.call_s,
            fleet.hardware.realign_s,
            work.early,
            traced=own,
        )
        for call in work.calls.values()
    ]
    for tool in work.tools.values():
        env.process(use_tool(env, tool, drafts))
    for node in nodes:
        env.process(node.run())
    yield env.all_of([draft.done for draft in drafts.values()])
    return GraphRun(began, env.now, {node.books.node: node.books for node in nodes})


def _drafts(env: simpy.Environment, work: Work) -> Iterator[tuple[str, Draft]]:
    for call in work.calls.values():
        yield call.node, Draft(env, call.message, call.limit)
    for tool in work.tools.values():
        for name, tokens in tool.texts.items():
            yield name, Draft(env, tokens, tokens, follow=False)
