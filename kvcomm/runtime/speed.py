"""Time to first token: every mode on the same workload, interleaved in one run."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvcomm.engine.base import Answer, Engine
from kvcomm.engine.base import Call as EngineCall
from kvcomm.engine.clock import done_at
from kvcomm.graphs import AgentGraph
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.plan import Step
from kvcomm.reuse.policy import Dense, Exact, Kvcomm, Policy
from kvcomm.reuse.recipe import LINEAR
from kvcomm.runtime.priors import measure
from kvcomm.runtime.result import Call
from kvcomm.runtime.scheduler import Scheduler
from kvcomm.runtime.workload import Workload
from kvcomm.sampling import Sampling
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

MODES = (
    "generate",
    "dense",
    "exact",
    "exact-warm",
    "shared-first",
    "kvcomm",
    "auto",
    "auto-warm",
)
# Passes over other samples before a mode that learns or caches counts as warm.
WARM = {"exact-warm": 1, "kvcomm": 2, "auto-warm": 3}


@dataclass(frozen=True)
class Agent:
    """One agent's call in one sample. `decode_budget_s` is what its producers' decoding takes."""

    node: str
    prompt_tokens: int
    computed_tokens: int
    base_tokens: int
    ahead_s: float
    decode_budget_s: float
    ttft_s: float
    first_token: int | None
    gate: str


@dataclass(frozen=True)
class Pass:
    """One run of the graph in one mode; `given`: its answers were not decoded."""

    agents: Sequence[Agent]
    end_to_end_s: float
    answers: dict[str, str]
    audits: Sequence[Audited] = ()
    given: bool = False

    @property
    def counts(self) -> bool:
        """Whether all work ahead fits beside real decoding."""
        fits = all(agent.ahead_s <= agent.decode_budget_s for agent in self.agents)
        return fits or not self.given


@dataclass
class Mode:
    """A mode of the benchmark, and its passes."""

    name: str
    graph: AgentGraph
    policy: Policy
    engine: Engine
    auto: Auto | None = None
    keeps: bool = False  # what it learned and cached goes from sample to sample
    passes: list[Pass] = field(default_factory=list)
    state_bytes: int = 0

    @property
    def counted(self) -> list[Pass]:
        """The passes whose work ahead fits; all of them where none does."""
        return [p for p in self.passes if p.counts] or self.passes

    def to_json(self, dense: Mode | None = None) -> dict[str, Any]:
        """The object of `kvcomm bench ttft --json` for this mode: medians over samples.

        With `dense`, how many calls agree with it: in their whole texts where answers are decoded,
        in the token sampled first where they are given.
        """
        passes = self.counted
        agents = []
        for calls in zip(*(p.agents for p in passes), strict=True):
            numbers = ("prompt_tokens", "computed_tokens", "base_tokens")
            times = ("ahead_s", "decode_budget_s", "ttft_s")
            agents.append(
                {
                    "agent": calls[0].node,
                    **{n: round(statistics.median(getattr(c, n) for c in calls)) for n in numbers},
                    **{n: statistics.median(getattr(c, n) for c in calls) for n in times},
                    "gate": calls[-1].gate,
                }
            )
        audits = [
            a.divergence for p in passes for a in p.audits if a.used and a.divergence is not None
        ]
        return {
            "agents": agents,
            "end_to_end_s": statistics.median(p.end_to_end_s for p in passes),
            "state_bytes": self.state_bytes,
            "samples": len(passes),
            "divergence": statistics.fmean(audits) if audits else None,
            "as_dense": self._as(dense) if dense else None,
        }

    def _as(self, dense: Mode) -> float:
        same = [
            mine.first_token == true.first_token
            and one.answers[mine.node] == other.answers[true.node]
            for one, other in zip(self.passes, dense.passes, strict=True)
            for mine, true in zip(one.agents, other.agents, strict=True)
        ]
        return statistics.fmean(same)


class Ttft:
    """Runs the workload in every mode, sample by sample; the mode that begins changes.

    `plain` is an engine that runs the same model by transformers' `generate`. With `decode` answers
    are decoded, otherwise they are given and computed. `forget` drops a namespace when it is done.
    """

    def __init__(
        self,
        engine: Engine,
        plain: Engine,
        workload: Workload,
        *,
        forget: Callable[[str], None] = lambda namespace: None,
        modes: Sequence[str] = MODES,
        decode: bool = False,
        on_pass: Callable[[str, int, float], None] = lambda mode, sample, took: None,
    ) -> None:
        self.engine = engine
        self.workload = workload
        self._decode = decode
        self._forget = forget
        self._on_pass = on_pass
        self._step_s = 0.0
        graph = workload.build(engine.codec)
        made = {
            "generate": Mode("generate", graph, Dense("generate"), plain),
            "dense": Mode("dense", graph, Dense(), engine),
            "exact": Mode("exact", graph, Exact(hands_over=False), engine),
            "exact-warm": Mode("exact-warm", graph, Exact(hands_over=False), engine, keeps=True),
            "shared-first": Mode(
                "shared-first",
                workload.build(engine.codec, "shared-first"),
                Exact(hands_over=False),
                engine,
            ),
            "kvcomm": Mode("kvcomm", graph, Kvcomm(gated=False), engine, keeps=True),
            "auto": Mode("auto", graph, Exact(), engine, Auto()),
            "auto-warm": Mode("auto-warm", graph, Exact(), engine, Auto(), keeps=True),
        }
        self.modes = [made[name] for name in modes]

    async def run(self, samples: int) -> list[Mode]:
        """Warm what learns, then `samples` passes of each mode, in turns."""
        self._step_s = await self._decode_step()
        for mode in self.modes:
            if mode.auto is not None:
                mode.auto.priors = await measure(self.engine, mode.auto.levels)
        for mode in self.modes:
            for number in range(WARM.get(mode.name, 0)):
                await self._pass(mode, -1 - number)
        for sample in range(samples):
            turn = sample % len(self.modes)
            for mode in (*self.modes[turn:], *self.modes[:turn]):
                mode.passes.append(await self._pass(mode, sample))
        return self.modes

    def _space(self, mode: Mode, sample: int) -> str:
        """A mode that keeps nothing finds nothing: every sample has a namespace of its own."""
        return f"ttft {mode.name}" if mode.keeps else f"ttft {mode.name} {sample}"

    async def _pass(self, mode: Mode, sample: int) -> Pass:
        began = done_at(self.engine.device)
        codec, work = self.engine.codec, self.workload
        forced = {} if self._decode else work.answers(codec, mode.graph, sample)
        scheduler = Scheduler(
            mode.engine,
            mode.graph,
            mode.policy,
            auto=mode.auto,
            inputs={"task": work.task(codec, sample)},
            seed=0,
            namespace=self._space(mode, sample),
            forced=forced,
        )
        calls: list[Call] = []
        started = done_at(self.engine.device)
        await scheduler.run(Recorder(None), calls)
        found = Pass(
            [self._agent(mode, call) for call in sorted(calls, key=self._order(mode))],
            scheduler.answered_at - started,
            {call.node: call.text for call in calls},
            tuple(scheduler.audits),
            given=bool(forced),
        )
        family = mode.policy.offsets or (LINEAR.offsets if mode.auto else "")
        if family:
            space = self._space(mode, sample)
            mode.state_bytes = await self.engine.state_bytes(family, space)
        if not mode.keeps:
            self._forget(self._space(mode, sample))
        self._on_pass(mode.name, sample, done_at(self.engine.device) - began)
        return found

    @staticmethod
    def _order(mode: Mode) -> Callable[[Call], int]:
        names = list(mode.graph.nodes)
        return lambda call: names.index(call.node)

    def _agent(self, mode: Mode, call: Call) -> Agent:
        levels = [name for level in mode.graph.levels() for name in level]
        before = levels.index(call.node) if self.workload.graph == "full" else call.report.round - 1
        report = call.report
        return Agent(
            call.node,
            report.prompt_tokens,
            call.total("computed"),
            report.base_tokens,
            report.ahead_s,
            before * self.workload.output * self._step_s,
            report.ttft_s,
            report.first_token,
            report.gate,
        )

    async def _decode_step(self) -> float:
        """Seconds of one decoding step of one row, at the length of half a prompt."""
        ids = self.workload.answers(self.engine.codec, self.modes[0].graph, 0)
        prompt = next(iter(ids.values()))
        steps = 8
        seq = self.engine.open(
            EngineCall(
                node="step",
                template=Template(((), ()), ("text",), "ttft"),
                capacity=len(prompt) + steps,
            )
        )
        try:
            answer = Answer(Sampling(max_tokens=steps, temperature=1.0))
            segment = Segment("placeholder", "text", prompt)
            await seq.extend([segment], [Step("compute", "step")], answer=answer)
            times = [token.at async for token in seq.decode()]
        finally:
            await seq.close()
        gaps = [b - a for a, b in itertools.pairwise(times)]
        return statistics.median(gaps) if gaps else 0.0
