"""Retrieval-augmented generation: what reuse of passages across questions costs, and what it saves.

A corpus is read ahead, by other questions. Then every mode and method answers the same questions
over passages of it, each in a sequence of its own, and is compared with the dense prompt along
dense's greedy continuation.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvcomm.agents import Agent
from kvcomm.bench import Findings
from kvcomm.bench.fidelity import MEASURED, TEACHER, measures
from kvcomm.engine.base import SAME_TEXT, Answer, CallSpec, Extended
from kvcomm.engine.clock import done_at
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.check import kv_shape
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.prompt import Segment
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Dense, Exact, Kvcomm, Policy, ReuseOptions
from kvcomm.reuse.recipe import LINEAR, METHODS, QUERY_AWARE, Realign, Recipe
from kvcomm.runtime.audits import Audit, AuditQueue
from kvcomm.runtime.call import Answered
from kvcomm.runtime.choice import chosen
from kvcomm.runtime.priors import measure
from kvcomm.runtime.reading import read_ahead
from kvcomm.runtime.stopping import StopTexts
from kvcomm.sampling import Sampling
from kvcomm.trace.events import Audited
from kvcomm.trace.record import Recorder

SPACE = "bench rag"
ALL = 1 << 20  # more tokens than any text has
MODES = ("dense", "exact", "kvcomm", "auto")
COLUMNS = ("mode", "mean", "± se", "worst", "computed", "F1", "same", "first", "end")
LEGEND = (
    "mean (with its standard error), worst: KL(dense ‖ mode) in nats over 24 tokens of dense's "
    "greedy answer; computed: share of a prompt's tokens behind its opening, a query pass counted; "
    "same: answers that are dense's; first, end: median seconds from the whole prompt to the first "
    "token and to the end."
)


def methods(shares: Iterable[float]) -> dict[str, Recipe]:
    """The methods beside the modes: as they are published, and at equal shares of all texts."""
    names = ("cacheblend", "repair", "linear")
    found = {"rotate": Recipe("rotate", short=24)}
    found |= {name: replace(METHODS[name], unknown="rotate") for name in names}
    for share in shares:
        percent = f"{share * 100:g}"
        made = (
            Recipe(f"cacheblend-{percent}", short=24, deviating=share),
            Recipe(f"repair-{percent}", short=24, first=ALL, leading=share),
            replace(
                LINEAR,
                name=f"linear-{percent}",
                first=ALL,
                leading=0.6 * share,
                deviating=0.4 * share,
                unknown="rotate",
            ),
            replace(QUERY_AWARE, name=f"query-{percent}", pooled=share),
        )
        found |= {recipe.name: recipe for recipe in made}
    return found


@dataclass(frozen=True)
class Asked:
    """A question over passages, in the order of the prompt; `score` is the F1 of an answer."""

    question: str
    passages: Sequence[str]
    score: Callable[[str], float] = lambda answer: 0.0

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs of the reader."""
        named = {f"passage{number}": text for number, text in enumerate(self.passages, 1)}
        return {"question": self.question, **named}


@dataclass
class RagMode:
    """One mode or method, and what was found, question by question."""

    name: str
    policy: Policy
    divergences: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    computed: dict[str, int] = field(
        default_factory=lambda: {"literals": 0, "passages": 0, "query": 0}
    )
    levels: list[str] = field(default_factory=list)
    audits: list[Audited] = field(default_factory=list)
    state_bytes: int = 0

    def to_json(self, tokens: int, dense: RagMode) -> dict[str, Any]:
        """The object of `kvcomm bench rag --json` for this mode, over so many prompt tokens."""
        computed = sum(self.computed.values()) / tokens
        gaps = [mine - theirs for mine, theirs in zip(self.f1, dense.f1, strict=True)]
        value: dict[str, Any] = {
            "divergence": {
                "mean": statistics.fmean(self.divergences),
                "median": statistics.median(self.divergences),
                "worst": max(self.divergences),
                "se": _error(self.divergences),
            },
            "computed_fraction": computed,
            "reused_fraction": 1 - computed,
            "computed_tokens": self.computed,
            "f1": statistics.fmean(self.f1),
            "f1_difference": {"mean": statistics.fmean(gaps), "interval": _interval(gaps)},
            "same_answer": statistics.fmean(self.same),
            "ttft_s": statistics.median(self.firsts),
            "end_to_end_s": statistics.median(self.ends),
            "bytes": self.state_bytes,
            "divergences": self.divergences,
        }
        if self.levels:
            value["levels"] = dict(Counter(self.levels))
            used = [a.divergence for a in self.audits if a.used and a.divergence is not None]
            value["audits"] = {"used": len(used), "probes": len(self.audits) - len(used)}
        return value


class Rag:
    """Reads a corpus ahead, then has every mode answer questions over it.

    The `reader` has placeholders for the question and `count` passages. `ahead` are other questions
    over the corpus. The offset models of methods that have some learn from the first `taught` of
    them. `on_step` hears what is done, of how much.
    """

    def __init__(
        self,
        engine: LocalEngine,
        reader: Agent,
        count: int,
        auto: Auto,
        modes: Sequence[str],
        shares: Sequence[float] = (0.2, 0.3),
        taught: int = 40,
        on_step: Callable[[str, int, int], None] = lambda what, done, of: None,
    ) -> None:
        self.engine, self.auto, self.taught = engine, auto, taught
        self._on_step = on_step
        known = methods(shares)
        for name in modes:
            if name not in MODES and name not in known:
                raise UsageError(
                    f"mode {name!r} is unknown: choose among {', '.join([*MODES, *known])}"
                )
        plain: dict[str, Policy] = {"dense": Dense(), "exact": Exact(), "kvcomm": Kvcomm()}
        self.modes = [
            RagMode(
                name,
                plain.get(name) or Realign(known.get(name, QUERY_AWARE), borrows=True),
            )
            for name in dict.fromkeys(("dense", *modes))
        ]
        names = ("question", *(f"passage{number}" for number in range(1, count + 1)))
        self._graph = AgentGraph((reader,), name="rag", inputs=names)
        self._template = self._graph.templates(engine.codec)[reader.name]
        self._reader = reader
        self.warmup_tokens = self.prompt_tokens = self.passage_tokens = self.questions = 0

    async def run(
        self, ahead: Sequence[Asked], asked: Sequence[Asked], warmup: Sequence[Asked] = ()
    ) -> list[RagMode]:
        """Read ahead, have `auto` learn from the `warmup`, which does not count, then ask."""
        self.auto.priors = await measure(self.engine, self.auto.levels)
        for number, other in enumerate(ahead):
            await self._read(other, number)
            self._on_step("prompts read ahead", number + 1, len(ahead))
        for number, question in enumerate(warmup):
            if any(mode.name == "auto" for mode in self.modes):
                mode = RagMode("auto", Realign(QUERY_AWARE, borrows=True))
                await self._answer(mode, question, self._segments(question), None, seed=-number)
            self._on_step("questions to learn from", number + 1, len(warmup))
        for number, question in enumerate(asked):
            await self._ask(question)
            self._on_step("questions", number + 1, len(asked))
        for mode in self.modes:
            if family := mode.policy.options.offsets:
                mode.state_bytes = await self.engine.state_bytes(family, SPACE)
        return self.modes

    def _segments(self, asked: Asked) -> list[Segment]:
        codec = self.engine.codec
        ids = {name: tuple(codec.encode(text)) for name, text in asked.inputs.items()}
        return self._template.fill(ids)

    def _spec(self, segments: Sequence[Segment], options: ReuseOptions, **more: Any) -> CallSpec:
        """A prompt that leaves nothing behind for the next one, unless `more` says so."""
        return CallSpec(
            self._reader.name,
            self._template,
            sum(map(len, segments)) + SAME_TEXT,
            SAME_TEXT,
            **{"reuse": replace(options, feeds_prefix=False), "namespace": SPACE, **more},
        )

    async def _read(self, asked: Asked, number: int) -> None:
        """Have another question read passages; the first one leaves the opening behind."""
        segments = self._segments(asked)
        learns = number < self.taught and any(m.policy.options.offsets for m in self.modes)
        options = ReuseOptions(feeds_prefix=number == 0, reads_prefix=True)
        call = self._spec(segments, options, reuse=options, shares=True)
        done = await read_ahead(self.engine, call, segments, LINEAR.offsets if learns else "")
        self.warmup_tokens += sum(usage.computed for usage in done.segments)
        if learns and any(mode.name == "kvcomm" for mode in self.modes):
            family = Kvcomm().options.offsets
            spec = self._spec(segments, TEACHER.options)
            await self.engine.evaluate(spec, segments, [], reference=TEACHER, learn=[family])

    async def _ask(self, asked: Asked) -> None:
        """Answer one question in every mode."""
        segments = self._segments(asked)
        self.questions += 1
        self.prompt_tokens += sum(len(segment) for segment in segments[1:])
        self.passage_tokens += sum(
            len(s) for s in segments if s.kind == "placeholder" and s.name != "question"
        )
        greedy = Answer(Sampling(max_tokens=SAME_TEXT), record=True)
        whole = self.engine.open(self._spec(segments, Dense().options))
        try:
            await whole.extend(segments, Dense(), last=greedy)
            _ = [token async for token in whole.answer()]
            expected = ""
            for mode in self.modes:
                said = await self._answer(mode, asked, segments, whole, self.questions)
                expected = said if mode.name == "dense" else expected
                mode.same.append(said == expected)
        finally:
            await whole.close()

    async def _answer(
        self,
        mode: RagMode,
        asked: Asked,
        segments: list[Segment],
        dense: LocalSequence | None,
        seed: int,
    ) -> str:
        """Answer in one mode, and compare with `dense`, where that is there."""
        policy, choice = mode.policy, None
        if mode.name == "auto":
            texts = {s.name: s.ids for s in segments if s.kind == "placeholder"}
            spec = self._spec(segments, policy.options)
            choice = chosen(self.auto, self.engine, spec, {}, texts, seed=seed)
            policy = choice.policy
        spec = self._spec(segments, policy.options)
        measured = (dense, MEASURED) if dense is not None and measures(policy) else None
        if (
            policy.options.realigns and dense is not None
        ):  # base KV that is missing is made here, off the clock
            await self._compared(mode, spec, segments, policy, dense)
        began = done_at(self.engine.network.device)
        seq = self.engine.open(spec)
        ids: list[int] = []
        try:
            last = Answer(Sampling(max_tokens=self._reader.sampling.max_tokens))
            done = await seq.extend(segments, policy, last=last, measured=measured)
            stops = StopTexts(self.engine.codec, self._reader.sampling.stop)
            async for token in seq.answer():
                if not ids:
                    mode.firsts.append(token.at - began)
                ids.append(token.id)
                if token.last or stops.end(token.id):
                    break
            await seq.stop(len(ids))
            mode.ends.append(done_at(self.engine.network.device) - began)
            moment, exact = seq.moment, seq.exact
            if choice is not None and exact and not choice.measured:
                await seq.finish(segments, LINEAR.offsets)
        finally:
            await seq.close()
        self._count(mode, done, measured is not None)
        if not policy.options.realigns and dense is not None:
            await self._compared(mode, spec, segments, policy, dense)
        if choice is not None:
            mode.levels.append("exact" if exact else policy.name)
            if choice.measured:
                queue, recorder = AuditQueue(self.engine, self.auto), Recorder(None)
                call = Answered(spec, segments, done.segments, choice, moment, exact)
                queue.add(Audit(call, choice, recorder, mode.audits))
                await queue.drain()
                queue.close()
        text = self.engine.codec.decode(ids)
        for stop in self._reader.sampling.stop:
            text = text.partition(stop)[0]
        mode.f1.append(asked.score(text))
        return text.strip()

    async def _compared(
        self,
        mode: RagMode,
        spec: CallSpec,
        segments: list[Segment],
        policy: Policy,
        dense: LocalSequence,
    ) -> None:
        seq = self.engine.open(spec)
        try:
            measured = (dense, MEASURED) if measures(policy) else None
            await seq.extend(segments, policy, ends=True, measured=measured)
            mode.divergences.append((await seq.compare(dense)).mean)
        finally:
            await seq.close()

    def _count(self, mode: RagMode, done: Extended, measured: bool) -> None:
        """Tokens that were computed behind the opening; layers that CacheBlend measures count."""
        layers = kv_shape(self.engine.config, 0)[0]
        for usage in done.segments[1:]:
            passage = usage.kind == "placeholder" and usage.name != "question"
            beside = usage.realigned * MEASURED // layers if measured else 0
            mode.computed["passages" if passage else "literals"] += usage.computed + beside
        mode.computed["query"] += done.query_tokens

    def report(self, suite: str) -> Findings:
        """What was found over all questions."""
        dense = self.modes[0]
        modes = {mode.name: mode.to_json(self.prompt_tokens, dense) for mode in self.modes}
        cache = self.engine.segments
        value = {
            "suite": suite,
            "questions": self.questions,
            "passages": len(self._template.names) - 1,
            "passage_tokens": self.passage_tokens / max(self.questions, 1),
            "warmup_tokens": self.warmup_tokens,
            "cache_bytes": cache.tiers.nbytes,
            "modes": modes,
        }
        rows = [(name, *_row(found)) for name, found in modes.items()]
        notes = [LEGEND]
        if "levels" in (found := modes.get("auto", {})):
            levels = ", ".join(f"{level} {count}" for level, count in found["levels"].items())
            notes.insert(0, f"auto chose {levels}; {found['audits']['probes']} probes")
        return Findings(value, COLUMNS, rows, notes)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean."""
    mean, width = statistics.fmean(values), 1.96 * _error(values)
    return mean - width, mean + width


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    divergence = found["divergence"]
    return (
        f"{divergence['mean']:.4f}",
        f"{divergence['se']:.4f}",
        f"{divergence['worst']:.3f}",
        f"{found['computed_fraction']:.0%}",
        f"{found['f1']:.3f}",
        f"{found['same_answer']:.0%}",
        f"{found['ttft_s']:.2f} s",
        f"{found['end_to_end_s']:.2f} s",
    )
