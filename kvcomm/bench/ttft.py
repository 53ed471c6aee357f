"""Time to first token: every mode on the same workload, in turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any

from kvcomm.bench import Findings
from kvcomm.bench.workload import Workload, decoded
from kvcomm.engine.base import Engine
from kvcomm.engine.clock import done_at
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.memory import peak_memory
from kvcomm.graphs import AgentGraph
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Dense, Exact, Kvcomm, Policy
from kvcomm.reuse.recipe import LINEAR
from kvcomm.runtime.audits import Audit, AuditQueue
from kvcomm.runtime.call import Answered
from kvcomm.runtime.priors import measure
from kvcomm.runtime.result import Call
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

MODES: dict[str, Policy] = {
    "generate": Dense("generate"),
    "dense": Dense(),
    "exact": Exact(publishes=False),
    "exact-warm": Exact(publishes=False),
    "shared-first": Exact(publishes=False),
    "kvcomm": Kvcomm(gated=False),
    "auto": Exact(),
    "auto-warm": Exact(),
}
# Passes over other samples before a mode that learns or caches counts as warm. What these learned
# and cached goes from sample to sample.
WARM = {"exact-warm": 1, "kvcomm": 2, "auto-warm": 3}
COLUMNS = ("mode", "TTFT last", "ratio", "end to end", "computed", "base", "ahead", "as dense")
LEGEND = (
    "TTFT: from the last producer's final token to the agent's first. computed: prompt tokens of "
    "all agents. base: tokens of standalone base KV beside them. ahead: time in forwards before "
    "the last input was there. as dense: calls with the same text (or, of answers that are given, "
    "the same first token)."
)


@dataclass(frozen=True)
class Pass:
    """One run of the graph in one mode: its calls, in the order of the graph."""

    calls: Sequence[Call]
    end_to_end_s: float
    audits: Sequence[Audited] = ()


@dataclass
class Mode:
    """A mode of the benchmark, and its passes.

    `budgets` says of each node how long its producers decode, in seconds. Of a mode whose answers
    are `given` that bounds the work ahead: more would not fit beside real decoding.
    """

    name: str
    graph: AgentGraph
    given: bool = True
    auto: Auto | None = None
    budgets: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    state_bytes: int = 0

    def _counts(self, one: Pass) -> bool:
        fits = all(call.report.ahead_s <= self.budgets[call.node] for call in one.calls)
        return fits or not self.given

    def to_json(self, dense: Mode | None = None) -> dict[str, Any]:
        """Medians over the passes that count, or over all of them where none does.

        With `dense`, how many calls say what it says: in their whole texts, and of given answers
        in the token that was sampled first.
        """
        passes = [one for one in self.passes if self._counts(one)] or self.passes
        audits = [audit.divergence for one in passes for audit in one.audits if audit.used]
        measured = [divergence for divergence in audits if divergence is not None]
        pairs = zip(self._said(), dense._said(), strict=True) if dense else ()
        same = statistics.fmean(one == other for one, other in pairs) if dense else None
        return {
            "agents": [self._agent(c) for c in zip(*(one.calls for one in passes), strict=True)],
            "end_to_end_s": statistics.median(one.end_to_end_s for one in passes),
            "state_bytes": self.state_bytes,
            "samples": len(passes),
            "divergence": statistics.fmean(measured) if measured else None,
            "as_dense": same,
        }

    def _agent(self, calls: Sequence[Call]) -> dict[str, Any]:
        def median(name: str) -> float:
            return float(statistics.median(getattr(call.report, name) for call in calls))

        return {
            "agent": calls[0].node,
            "prompt_tokens": round(median("prompt_tokens")),
            "computed_tokens": round(statistics.median(c.total("computed") for c in calls)),
            "base_tokens": round(median("base_tokens")),
            "ahead_s": median("ahead_s"),
            "decode_budget_s": self.budgets[calls[0].node],
            "ttft_s": median("ttft_s"),
            "gate": calls[-1].report.gate,
        }

    def _said(self) -> list[tuple[int | None, str]]:
        return [(call.report.first_token, call.text) for one in self.passes for call in one.calls]


@dataclass
class Ttft:
    """Runs the workload in every mode, sample by sample; the mode that begins changes.

    With `decode` answers are decoded, otherwise they are given and computed. `generate` is the same
    model by transformers' own `generate`.
    """

    engine: LocalEngine
    workload: Workload
    _: KW_ONLY
    modes: InitVar[Sequence[str]] = tuple(MODES)
    decode: bool = False
    on_step: Callable[[str], None] = lambda what: None
    found: list[Mode] = field(default_factory=list, init=False)

    def __post_init__(self, modes: Sequence[str]) -> None:
        for name in modes:
            graph = self.workload.build(self.engine.codec, shared_first=name == "shared-first")
            auto = Auto() if "auto" in name else None
            self.found.append(Mode(name, graph, not self.decode, auto))

    async def run(self, samples: int) -> list[Mode]:
        """Warm what learns, then `samples` passes of each mode, in turns."""
        # One decoding step of one row, at the length of half a prompt.
        answers = self.workload.answers(self.engine.codec, self.found[0].graph, 0)
        times = await decoded(self.engine, next(iter(answers.values())), 8)
        step_s = statistics.median([b - a for a, b in itertools.pairwise(times)] or [0.0])
        for mode in self.found:
            levels = [name for level in mode.graph.levels() for name in level]
            for at, name in enumerate(levels):
                before = at if self.workload.graph == "full" else mode.graph.nodes[name].round - 1
                mode.budgets[name] = before * self.workload.output * step_s
            if mode.auto is not None:
                mode.auto.priors = await measure(self.engine, mode.auto.levels)
        with self.engine.plain() as plain:
            for mode in self.found:
                for number in range(WARM.get(mode.name, 0)):
                    await self._pass(mode, -1 - number, plain)
            for sample in range(samples):
                turn = sample % len(self.found)
                for mode in (*self.found[turn:], *self.found[:turn]):
                    mode.passes.append(await self._pass(mode, sample, plain))
        return self.found

    async def _pass(self, mode: Mode, sample: int, plain: Engine) -> Pass:
        began = done_at(self.engine.device)
        codec, work, policy = self.engine.codec, self.workload, MODES[mode.name]
        # A mode that keeps nothing finds nothing: every sample has a namespace of its own.
        keeps = mode.name in WARM
        space = f"ttft {mode.name}" if keeps else f"ttft {mode.name} {sample}"
        spec = RunSpec(
            mode.graph,
            policy,
            {"task": work.task(codec, sample)},
            namespace=space,
            auto=mode.auto,
            forced=work.answers(codec, mode.graph, sample) if mode.given else {},
        )
        run = GraphRun(plain if mode.name == "generate" else self.engine, spec)
        audits = await self._behind(run, mode.auto)
        order = list(mode.graph.nodes)
        calls = sorted(run.calls, key=lambda call: order.index(call.node))
        if family := policy.options.offsets or (LINEAR.offsets if mode.auto else ""):
            mode.state_bytes = await self.engine.state_bytes(family, space)
        if not keeps:
            self.engine.forget(space)
        what = f"sample {sample + 1}" if sample >= 0 else f"warm-up {-sample}"
        self.on_step(f"{mode.name}, {what}: {done_at(self.engine.device) - began:.1f} s")
        return Pass(calls, run.answered_at - run.started, tuple(audits))

    async def _behind(self, run: GraphRun, auto: Auto | None) -> list[Audited]:
        """Run, and what goes on behind the answers of `auto`: its audits."""
        found: list[Audited] = []
        recorder = Recorder(None)
        if auto is None:
            await run.run(recorder)
            return found
        queue = AuditQueue(self.engine, auto)

        def answered(call: Answered) -> None:
            if call.choice is not None and call.choice.measured:
                recorder.hold()
                queue.add(Audit(call, call.choice, recorder, found))

        run.on_answered = answered
        try:
            await run.run(recorder)
            await queue.drain()
        finally:
            queue.close()
        await self.engine.drain()
        return found

    def report(self) -> Findings:
        """All modes that were run, beside `dense` where it was."""
        dense = next((mode for mode in self.found if mode.name == "dense"), None)
        found = {mode.name: mode.to_json(dense) for mode in self.found}
        workload = vars(self.workload) | {"decode": self.decode}
        peak = peak_memory(self.engine.network.device)
        value = {"peak_bytes": peak, "workload": workload, "modes": found}
        rows = [(name, *_row(mode, found.get("dense"))) for name, mode in found.items()]
        return Findings(value, COLUMNS, rows, (LEGEND,))


def _row(value: dict[str, Any], dense: dict[str, Any] | None) -> tuple[str, ...]:
    agents, last = value["agents"], value["agents"][-1]["ttft_s"]
    names = ("prompt_tokens", "computed_tokens", "base_tokens", "ahead_s")
    prompt, computed, base, ahead = (sum(agent[name] for agent in agents) for name in names)
    return (
        f"{last:.2f} s",
        f"{dense['agents'][-1]['ttft_s'] / last:.1f}×" if dense else "",
        f"{value['end_to_end_s']:.1f} s",
        f"{computed / prompt:.0%}",
        f"{base:,}",
        f"{ahead:.1f} s",
        "" if value["as_dense"] is None else f"{value['as_dense']:.0%}",
    )
