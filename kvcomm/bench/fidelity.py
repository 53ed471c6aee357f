"""Fidelity: how far each reuse method is from dense, measured on the calls of real graph runs.

The graphs run dense, so every method sees the same calls. The first calls teach the offset models;
on the held-out ones every method puts the prompt into a sequence of its own, which is compared
with the dense one along dense's greedy continuation.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvcomm.bench import Findings
from kvcomm.engine.base import Compared, Divergence, Variant
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.check import kv_shape
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.message import Handle
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Dense, Exact, Kvcomm, Policy, ReuseOptions
from kvcomm.reuse.recipe import LINEAR, METHODS, Realign
from kvcomm.runtime.audits import Audit, AuditQueue
from kvcomm.runtime.call import Answered
from kvcomm.runtime.choice import chosen
from kvcomm.runtime.priors import measure
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

AUTO_SPACE = "fidelity-auto"
# CacheBlend computes all tokens in so many first layers, and looks at the KV of the last of them.
MEASURED = 2
# The graphs run so, and the prompts that teach are computed so: with base KV of all texts alone.
PLAIN = Dense("reference", ReuseOptions(publishes=True))
TEACHER = Dense("reference", ReuseOptions(bases="alone", literals=True))
COLUMNS = {
    "median": "{divergence[median]:.4f}",
    "mean": "{divergence[mean]:.4f}",
    "first": "{first_divergence[mean]:.4f}",
    "top-1": "{top1_agreement:.3f}",
    "same text": "{same_text_32:.0%}",
    "computed": "{computed_fraction:.1%}",
    "state": "{megabytes:,.0f} MB",
}
LEGEND = (
    "mean KL(dense ‖ method) in nats over 24 tokens of dense's greedy answer, and at its first "
    "token; top-1: tokens on which both agree; same text: answers with the same first 32 tokens; "
    "computed: share of the prompts' token-layers."
)


def policies() -> dict[str, Policy]:
    """The methods in the order in which they are shown."""
    made: dict[str, Policy] = {name: Realign(recipe) for name, recipe in METHODS.items()}
    return {**made, "kvcomm": Kvcomm(), "exact": Exact()}


@dataclass(frozen=True)
class MethodCall:
    """One method on one call. `computed` counts token-layers over layers, measuring included."""

    divergence: Divergence
    tokens: int
    computed: float
    rotated_only: bool
    decision: str


@dataclass
class Method:
    """A policy, and what was measured of it; with `audits` that of `auto`, call by call."""

    name: str
    policy: Policy
    namespace: str = ""
    audits: list[Audited] | None = None
    calls: list[MethodCall] = field(default_factory=list)
    state_bytes: int = 0

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
        if self.audits is not None:
            used = [a.divergence for a in self.audits if a.used and a.divergence is not None]
            mean = statistics.fmean(used) if used else None
            probes = sum(not audit.used for audit in self.audits)
            value["choices"] = dict(Counter(call.decision for call in self.calls))
            value["audits"] = {"used": len(used), "mean": mean, "probes": probes}
        return value


@dataclass
class Fidelity:
    """Runs a graph over questions and measures every method on its calls.

    `auto`, if given, is a method too: it learns from all calls as it would in a session of its own,
    by its own choices, probes and audits. Measured are calls with a message or an input named in
    `passages`. `on_call` hears how many calls were looked at, of how many.
    """

    engine: LocalEngine
    graph: AgentGraph
    warmup: int
    held_out: int
    passages: frozenset[str] = frozenset()
    methods: Mapping[str, Policy] = field(default_factory=policies)
    auto: Auto | None = None
    on_call: Callable[[int, int], None] = lambda done, of: None
    found: list[Method] = field(init=False)
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.found = [
            Method(name, policy, "" if policy.options.realigns else f"fidelity-{name}")
            for name, policy in self.methods.items()
        ]
        if self.auto is not None:
            self.found.append(Method("auto", Realign(LINEAR), AUTO_SPACE, []))

    async def run(self, questions: Sequence[Mapping[str, str]]) -> list[Method]:
        """Go through the questions until enough calls were seen.

        Raises `UsageError` when they do not yield `warmup + held_out` of them.
        """
        wanted = self.warmup + self.held_out
        if self.auto:
            self.auto.priors = await measure(self.engine, self.auto.levels)
        for inputs in questions:
            if self.seen >= wanted:
                break
            answered: list[tuple[Answered, list[Handle]]] = []

            def keep(call: Answered, answered: list[Any] = answered) -> None:
                handles = [segment.handle for segment in call.segments if segment.handle]
                answered.append((call, handles))
                for handle in handles:
                    self.engine.retain(handle)

            spec = RunSpec(self.graph, PLAIN, inputs, namespace=AUTO_SPACE, shares=True)
            run = GraphRun(self.engine, spec)
            run.on_answered = keep
            await run.run(Recorder(None))
            read: set[str] = set()  # inputs that an earlier call of the question has read
            for call, handles in answered:
                if self.seen < wanted:
                    await self._look(call, read)
                read |= set(call.spec.template.names) - call.spec.messages
                for handle in handles:
                    self.engine.release(handle)
        if self.seen < wanted:
            raise UsageError(
                f"{len(questions)} questions gave {self.seen} calls with a message or a passage, "
                f"{wanted} are wanted: lower --warmup or --held-out"
            )
        for method in self.found:
            if family := method.policy.options.offsets:
                method.state_bytes = await self.engine.state_bytes(family, method.namespace)
        return self.found

    async def _look(self, call: Answered, read: set[str]) -> None:
        """Learn from one dense call, or measure every method on it."""
        if not (self.passages | call.spec.messages) & set(call.spec.template.names):
            return
        warm = self.seen < self.warmup
        mine = [method for method in self.found if method.audits is None]
        plain = replace(call.spec, namespace="")
        if warm:
            families = sorted({method.policy.options.offsets for method in mine} - {""})
            await self.engine.evaluate(plain, call.segments, [], reference=TEACHER, learn=families)
        elif mine:
            variants = [self._variant(call, method) for method in mine]
            evaluation = await self.engine.evaluate(
                plain, call.segments, variants, reference=PLAIN, distinct=False
            )
            for method, compared in zip(mine, evaluation.variants, strict=True):
                method.calls.append(self._measured(method.policy, compared))
        for method in self.found:
            if method.audits is not None and self.auto is not None:
                found = await self._auto(call, read, self.auto, method.audits)
                method.calls += [] if warm else [found]
        self.seen += 1
        self.on_call(self.seen, self.warmup + self.held_out)

    def _variant(self, call: Answered, method: Method) -> Variant:
        options, space = method.policy.options, method.namespace
        # A method must not find what another one has just computed.
        options = replace(options, feeds_prefix=bool(space))
        spec = replace(call.spec, reuse=options, namespace=space, shares=False)
        return Variant(method.policy, call=spec, measured=MEASURED * measures(method.policy))

    def _measured(self, policy: Policy, compared: Compared) -> MethodCall:
        assert compared.divergence is not None
        usage, beside = compared.segments, 0.0
        if measures(policy) and not compared.dense:
            tokens = sum(piece.computed + piece.realigned for piece in usage)
            beside = tokens * MEASURED / kv_shape(self.engine.config, 0)[0]
        return MethodCall(
            compared.divergence,
            sum(piece.tokens for piece in usage),
            sum(piece.computed for piece in usage) + beside,
            any("rotated only" in piece.reason for piece in usage),
            compared.decision,
        )

    async def _auto(
        self, call: Answered, read: set[str], auto: Auto, audits: list[Audited]
    ) -> MethodCall:
        """One call as `auto` does it; behind it, it measures and learns as in a session."""
        texts = {s.name: s.ids for s in call.segments if s.kind == "placeholder"}
        messages = {name: len(texts[name]) for name in call.spec.messages}
        inputs = {name: ids for name, ids in texts.items() if name not in messages}
        choice = chosen(auto, self.engine, call.spec, messages, inputs, frozenset(read), self.seen)
        options = replace(choice.policy.options, reads_prefix=True, feeds_prefix=True)
        spec = replace(call.spec, reuse=options)
        # What is not measured behind the answer teaches at once.
        learn = [] if choice.measured or choice.used else [LINEAR.offsets]
        variants = [Variant(choice.policy, call=spec)]
        evaluation = await self.engine.evaluate(
            spec, call.segments, variants, learn=learn, distinct=False
        )
        (compared,) = evaluation.variants
        found = self._measured(choice.policy, compared)
        exact = not any(usage.realigned for usage in compared.segments)
        if choice.measured:
            queue, recorder = AuditQueue(self.engine, auto), Recorder(None)
            done = Answered(spec, call.segments, compared.segments, choice, None, exact)
            queue.add(Audit(done, choice, recorder, audits))
            await queue.drain()
            queue.close()
        decision = "exact" if exact or compared.dense else choice.policy.name
        return replace(found, decision=decision)

    def report(self, suite: str, graph: str) -> Findings:
        """All methods on the held-out calls of this graph over this suite."""
        found = {method.name: method.to_json() for method in self.found}
        value = {"suite": suite, "graph": graph, "calls": self.held_out, "methods": found}
        rows = []
        for name, one in found.items():
            cells = {**one, "megabytes": one["state_bytes"] / 1e6}
            rows.append((name, *(form.format(**cells) for form in COLUMNS.values())))
        notes = [_choices(found["auto"])] if "auto" in found else []
        return Findings(value, ("method", *COLUMNS), rows, [*notes, LEGEND])


def measures(policy: Policy) -> bool:
    """Whether it repairs deviating tokens without offsets that would point to them."""
    return isinstance(policy, Realign) and policy.recipe.deviating > 0 and not policy.recipe.offsets


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def _choices(found: dict[str, Any]) -> str:
    """What `auto` chose on the held-out calls, and what its audits came to over all calls."""
    choices = ", ".join(f"{name} {count}" for name, count in found["choices"].items())
    audits = found["audits"]
    mean = "none" if audits["mean"] is None else f"{audits['used']}, mean {audits['mean']:.4f}"
    return f"auto chose {choices}; audits of realigned calls: {mean}; probes: {audits['probes']}"
