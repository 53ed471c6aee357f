"""Fidelity: how far each reuse method is from dense, measured on the calls of real graph runs.

The graphs run dense, so every method sees the same calls. The first calls teach the offset models;
on the held-out ones every method puts the prompt into a row of its own, and that row is compared
with the dense one along dense's greedy continuation.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvcomm.engine.base import Divergence, EngineSequence, Extended, Survey
from kvcomm.engine.check import kv_shape
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.sequence import LocalSequence
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.prompt import Segment
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Dense, Exact, Kvcomm, Policy
from kvcomm.reuse.recipe import LINEAR, METHODS, Realign
from kvcomm.runtime.audit import GREEDY, Auditor, Finished, taught_by
from kvcomm.runtime.filling import surveyed
from kvcomm.runtime.node import Attempt
from kvcomm.runtime.priors import measure
from kvcomm.runtime.scheduler import Scheduler
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

AUTO_SPACE = "fidelity-auto"
# CacheBlend computes all tokens in so many first layers, and looks at the KV of the last of them.
MEASURED = 2


def policies() -> dict[str, Policy]:
    """The methods in the order in which they are shown."""
    made: dict[str, Policy] = {name: Realign(recipe) for name, recipe in METHODS.items()}
    return {**made, "kvcomm": Kvcomm(), "exact": Exact()}


@dataclass(frozen=True)
class Measured:
    """One method on one call. `computed` counts token-layers over layers, measuring included."""

    divergence: Divergence
    tokens: int
    computed: float
    rotated_only: bool
    gate: str


@dataclass
class Method:
    """A policy, and what was measured of it."""

    name: str
    policy: Policy
    namespace: str = ""
    calls: list[Measured] = field(default_factory=list)
    state_bytes: int = 0
    audits: Sequence[Audited] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of `kvcomm bench fidelity --json` for this method."""
        found = [call.divergence for call in self.calls]
        tokens = sum(call.tokens for call in self.calls)
        value: dict[str, Any] = {
            "divergence": _spread([d.mean for d in found]),
            "first_divergence": _spread([d.first for d in found]),
            "top1_agreement": statistics.fmean(d.top1 for d in found),
            "same_text_32": statistics.fmean(d.same_text for d in found),
            "computed_fraction": sum(call.computed for call in self.calls) / tokens,
            "state_bytes": self.state_bytes,
            "rotated_only": sum(call.rotated_only for call in self.calls),
        }
        if self.name == "auto":
            used = [a.divergence for a in self.audits if a.used and a.divergence is not None]
            probes = sum(not a.used for a in self.audits)
            mean = statistics.fmean(used) if used else None
            value["choices"] = dict(Counter(call.gate for call in self.calls))
            value["audits"] = {"used": len(used), "mean": mean, "probes": probes}
        return value


class Fidelity:
    """Runs a graph over questions and measures every method on its calls.

    `auto`, if given, is a method too: it learns from all calls as it would in a session of its own,
    by its own choices, probes and audits. Measured are calls with a message or an input named in
    `passages`. Raises `UsageError` when the questions do not yield `warmup + held_out` of them.
    """

    def __init__(
        self,
        engine: LocalEngine,
        graph: AgentGraph,
        *,
        warmup: int,
        held_out: int,
        passages: frozenset[str] = frozenset(),
        methods: Mapping[str, Policy] | None = None,
        auto: Auto | None = None,
        on_call: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.engine = engine
        self.graph = graph
        self.warmup = warmup
        self.held_out = held_out
        self.seen = 0
        self.methods = [
            Method(name, policy, "" if policy.realigns else f"fidelity-{name}")
            for name, policy in (policies() if methods is None else methods).items()
        ]
        self.auto: Method | None = None
        self._auditor: Auditor | None = None
        if auto is not None:
            self.auto = Method("auto", Realign(LINEAR), AUTO_SPACE)
            self._auditor = Auditor(engine, auto, Recorder(None), AUTO_SPACE)
        named = {method.policy.offsets for method in self.methods}
        self._taught = sorted(named - {""})
        self._passages = passages
        self._on_call = on_call
        self._turn = asyncio.Lock()

    @property
    def wanted(self) -> int:
        """Calls to look at, warm-up and held-out."""
        return self.warmup + self.held_out

    async def run(self, questions: Sequence[Mapping[str, str]]) -> list[Method]:
        """Go through the questions until enough calls were seen."""
        if self._auditor:
            auto = self._auditor.auto
            auto.priors = await measure(self.engine, auto.levels)
        for inputs in questions:
            if self.seen >= self.wanted:
                break
            scheduler = Scheduler(
                self.engine,
                self.graph,
                Dense("reference", hands_over=True),
                inputs=inputs,
                seed=0,
                after=self._look,
                lends=self.auto is not None,
            )
            await scheduler.run(Recorder(None), [])
        if self.seen < self.wanted:
            raise UsageError(
                f"{len(questions)} questions gave {self.seen} calls with a message or a passage, "
                f"{self.wanted} are wanted: lower --warmup or --held-out"
            )
        if self.auto and self._auditor:
            self.auto.audits = self._auditor.audits
            self.methods.append(self.auto)
        for method in self.methods:
            if method.policy.offsets:
                method.state_bytes = await self.engine.state_bytes(
                    method.policy.offsets, method.namespace
                )
        return self.methods

    async def _look(self, attempt: Attempt, dense: EngineSequence) -> None:
        """Learn from one dense call, or measure every method on it."""
        reads = set(attempt.template.names)
        if not reads & (self._passages | set(attempt.drafts)):
            return
        async with self._turn:
            if self.seen >= self.wanted:
                return
            segments = await attempt.segments()
            if self.seen < self.warmup:
                survey = await dense.survey(segments)
                for family in self._taught:
                    await dense.observe(taught_by(survey.facts), family)
            else:
                for method in self.methods:
                    method.calls.append(await self._measure(method, attempt, segments, dense))
            if self.auto and self._auditor:
                measured = await self._choose(self._auditor, attempt, segments, dense)
                if self.seen >= self.warmup:
                    self.auto.calls.append(measured)
            self.seen += 1
            self._on_call(self.seen, self.wanted)

    async def _measure(
        self,
        method: Method,
        attempt: Attempt,
        segments: Sequence[Segment],
        dense: EngineSequence,
    ) -> Measured:
        policy = method.policy
        call = replace(
            attempt.engine_call(),
            reads_prefix=policy.reads_prefix,
            # A method must not find what another one has just computed.
            feeds_prefix=bool(method.namespace),
            offsets=policy.offsets,
            namespace=method.namespace,
        )
        seq = self.engine.open(call)
        try:
            survey = await surveyed(seq, segments, policy)
            beside = 0.0
            if measured := _measures(policy):
                survey = await _first_layers(survey, dense)
            plan = policy.plan(survey.facts)
            done = await seq.extend(survey.segments, plan.steps)
            if measured and not plan.dense:
                tokens = sum(piece.computed + piece.realigned for piece in done)
                beside = tokens * MEASURED / kv_shape(self.engine.config, 0)[0]
            return _measured(await seq.compare(dense), done, beside, plan.gate)
        finally:
            await seq.close()

    async def _choose(
        self,
        auditor: Auditor,
        attempt: Attempt,
        segments: Sequence[Segment],
        dense: EngineSequence,
    ) -> Measured:
        """One call as `auto` does it: choice, prompt, and what it measures and learns behind it."""
        call = replace(
            attempt.engine_call(),
            borrows=True,
            namespace=AUTO_SPACE,
            reads_prefix=True,
            feeds_prefix=True,
        )
        reused = attempt.loans.keys() | call.messages
        sizes = {s.name: len(s) for s in segments if s.kind == "placeholder" and s.name in reused}
        choice = await auditor.choose(call, sizes, seed=self.seen)
        policy = choice.policy
        seq = self.engine.open(replace(call, offsets=LINEAR.offsets))
        try:
            survey = await surveyed(seq, segments, policy)
            plan = policy.plan(survey.facts)
            probed = bool(choice.measured) and not choice.used
            answer = GREEDY if probed else None
            done = await seq.extend(survey.segments, plan.steps, answer=answer)
            if answer:
                async for _ in seq.decode():
                    pass
            gate = "exact" if plan.dense or not policy.realigns else policy.name
            measured = _measured(await seq.compare(dense), done, 0.0, gate)
            await auditor.after(Finished(seq, call, segments, choice, recorded=probed))
            return measured
        finally:
            await seq.close()


def _measures(policy: Policy) -> bool:
    """Whether it repairs deviating tokens without offsets that would point to them."""
    return isinstance(policy, Realign) and policy.recipe.deviating > 0 and not policy.recipe.offsets


async def _first_layers(survey: Survey, dense: EngineSequence) -> Survey:
    """The survey as it is once the first layers of the whole prompt are computed: dense's are."""
    assert isinstance(dense, LocalSequence)
    found = await dense.with_first_layers(survey.segments, MEASURED)
    facts = (replace(f, deviations=d) for f, (_, d) in zip(survey.facts, found, strict=True))
    return replace(survey, segments=tuple(s for s, _ in found), facts=tuple(facts))


def _measured(
    divergence: Divergence, done: Sequence[Extended], beside: float, gate: str
) -> Measured:
    return Measured(
        divergence,
        sum(piece.computed + piece.prefix + piece.realigned for piece in done),
        sum(piece.computed for piece in done) + beside,
        any("rotated only" in piece.reason for piece in done),
        gate,
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
