"""The evaluation loop: tasks through a graph, several at once, scored, logged, resumable."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from kvcomm import __version__
from kvcomm.agents import Agent, Tool
from kvcomm.engine.base import Engine
from kvcomm.errors import ContextOverflow, KvcommError, StateError, UsageError
from kvcomm.graphs import AgentGraph, Node
from kvcomm.reuse.policy import Anchors, Kvcomm, Policy
from kvcomm.runtime.result import Call, Result
from kvcomm.session import Session
from kvcomm.tasks.graders import Graders
from kvcomm.tasks.methods import OwnPolicy
from kvcomm.tasks.record import STATE, TRACES, CallRow, Conditions, Config, Key, Log, Sample
from kvcomm.tasks.scoring import Score
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.task import Task
from kvcomm.trace.events import Audited
from kvcomm.trace.record import TRACE_FILE

Item = tuple[Task, int, str]  # a task, which repeat of it, a mode


def key_of(item: Item) -> Key:
    """What the sample of an item is known by."""
    return item[0].id, *item[1:]


@dataclass(frozen=True)
class EvalPlan:
    """What to evaluate: every task `repeats` times in every mode, at most `concurrent` at once.

    `own` are the modes that are policies of a user's own, `anchors` the numbers of the mode
    "kvcomm", `baselines` the modes that the others are compared with (none: the first mode is
    compared with the others). The tasks of `warmup` are done first, once in every mode: they teach
    and do not count. A run that fails is tried again `retries` times. Repeats differ in their
    seeds. A seeded share of the samples keeps its `traces`.
    """

    suite: Suite
    tasks: Sequence[Task]
    graph: AgentGraph
    modes: Sequence[str]
    seed: int = 0
    repeats: int = 1
    retries: int = 1
    concurrent: int = 4
    traces: float = 1.0
    warmup: Sequence[Task] = ()
    anchors: Anchors = field(default_factory=Anchors)
    own: Mapping[str, OwnPolicy] = field(default_factory=dict)
    baselines: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("concurrent", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.traces <= 1:
            raise UsageError(f"traces {self.traces!r} is no share: use 0 to 1, such as 0.1")
        for task in (*self.warmup, *self.tasks):
            task.inputs_for(self.graph.inputs)

    def traced(self, task: Task, repeat: int) -> bool:
        """Whether the sample's traces are kept: the same in every mode."""
        return random.Random(f"{self.seed} {task.id} {repeat}").random() < self.traces

    def policy(self, mode: str) -> str | Policy:
        """What a session takes for a mode."""
        if mode in self.own:
            return self.own[mode].policy
        return Kvcomm(anchors=self.anchors) if mode == "kvcomm" else mode

    def warming(self) -> list[Item]:
        """Every sample of the warm-up, the modes of a task beside each other."""
        return list(product(self.warmup, (0,), self.modes))

    def work(self) -> list[Item]:
        """Every sample, the modes of a task beside each other."""
        each = product(range(self.repeats), self.tasks, self.modes)
        return [(task, repeat, mode) for repeat, task, mode in each]


class Evaluation:
    """Runs a plan on an engine and keeps every sample in `out`.

    `on_sample` is called with each sample that is done, those of an earlier run first. `quality`
    are the options of `auto`. `now` is what chat templates that write the day are told; one that
    goes on keeps the day it began with. Raises `UsageError` when `out` holds another evaluation.
    """

    def __init__(
        self,
        engine: Engine,
        plan: EvalPlan,
        graders: Graders,
        out: Path,
        *,
        quality: Mapping[str, Any],
        on_sample: Callable[[Sample], None] = lambda sample: None,
        now: datetime | None = None,
    ) -> None:
        self.plan = plan
        self._graders = graders
        self._on_sample = on_sample
        self.log = Log(out, _config(engine, plan, quality, now or datetime.now()))
        self.config = self.log.config
        self._sessions = {}
        for mode in plan.modes:
            # Modes beside each other must not live on what another one has computed.
            space = mode if len(plan.modes) > 1 else ""
            kept: dict[str, Any] = {"seed": plan.seed, "state": out / STATE, "runs": None}
            session = Session(engine, reuse=plan.policy(mode), namespace=space, **kept, **quality)
            session.now = self.config.now or session.now
            self._sessions[mode] = session
        self.warnings: dict[str, str] = {}
        self._behind: dict[Key, list[Audited]] = {}

    async def run(self) -> list[Sample]:
        """Do what is left, and return all samples in the order of the plan."""
        for sample in self.log.samples:
            self._on_sample(sample)
        try:
            for session in self._sessions.values():
                await session.awarm_up()
            await self._warm_up()
            try:
                await self._each(self._left(self.plan.work()), self.log.append)
                await self._drain()
                for sample in self.log.samples:
                    audits = self._behind.get(sample.key, ())
                    used = [audit.divergence for audit in audits if audit.used]
                    if found := [divergence for divergence in used if divergence is not None]:
                        self.log.append(sample.model_copy(update={"audits": found}))
            finally:
                await self._save()
        finally:
            self.log.close()
        return [self.log.done[key_of(item)] for item in self.plan.work()]

    def _left(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if key_of(item) not in self.log.done]

    async def _each(
        self, items: Sequence[Item], keep: Callable[[Sample], None], warmup: bool = False
    ) -> None:
        """Do every item, `concurrent` at once, and hand on its sample."""
        pending = iter(items)

        async def worker() -> None:
            for item in pending:
                sample = await self._sample(item, warmup)
                keep(sample)
                self._on_sample(sample)

        workers = [asyncio.create_task(worker()) for _ in range(self.plan.concurrent)]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _warm_up(self) -> None:
        """Let the modes learn. It is logged once it is saved: stopped before, it is done again."""
        if not self._left(self.plan.warming()):
            return
        warm: list[Sample] = []
        await self._each(self.plan.warming(), warm.append, warmup=True)
        await self._drain()
        self._behind.clear()
        await self._save()
        for sample in warm:
            self.log.append(sample)

    @property
    def auditing(self) -> int:
        """How many calls wait to be audited, or are being."""
        return sum(session.auditing for session in self._sessions.values())

    async def _drain(self) -> None:
        """Wait for what goes on behind the answers: audits, and learning from them."""
        for session in self._sessions.values():
            await session.adrain()

    async def _save(self) -> None:
        for session in self._sessions.values():
            try:
                await session.save()
            except StateError as error:  # the samples are worth more
                self.warnings[session.mode] = str(error)

    async def _sample(self, item: Item, warmup: bool) -> Sample:
        """One task, once; a failure is a sample too."""
        task, repeat, mode = item
        began, trace, folder = time.monotonic(), "", None
        if self.plan.traced(task, repeat):
            trace = f"{TRACES}/{_slug(task.id)}-{repeat}-{_slug(mode)}"
            folder = self.log.folder / trace
        inputs: Any = task.inputs_for(self.plan.graph.inputs, self.plan.suite.ask)
        outcome: dict[str, Any] = {"value": 0.0, "correct": False, "reason": "the run failed"}
        for tries in range(1, 2 + self.plan.retries):
            outcome["tries"] = tries
            if folder:  # a trace of a run that was killed, or that failed, makes way
                (folder / TRACE_FILE).unlink(missing_ok=True)
            try:
                result = await self._sessions[mode].arun(
                    self.plan.graph, out=folder, seed=self.plan.seed + repeat, **inputs
                )
                score = await self._score(task, result.answer)
            except ContextOverflow as error:
                outcome["error"] = str(error)
            except UsageError:
                raise  # the next sample would fail as well
            except Exception as error:
                outcome["error"] = str(error) if isinstance(error, KvcommError) else repr(error)
                continue
            else:
                calls, chosen = [*map(_row, result.calls)], await self._chosen(task, result, score)
                outcome = asdict(score) | {"answer": result.answer, "tries": tries}
                outcome |= {"calls": calls, "chosen": chosen}
                self._behind[key_of(item)] = result.audits
            break
        outcome |= {"task": task.id, "repeat": repeat, "mode": mode, "warmup": warmup}
        return Sample(**outcome, wall_s=time.monotonic() - began, trace=trace)

    async def _score(self, task: Task, answer: str) -> Score:
        return await asyncio.to_thread(self.plan.suite.grade, task, answer, self._graders)

    async def _chosen(self, task: Task, result: Result, score: Score) -> list[str]:
        """The nodes heard by the last agent whose answer is the one it gave."""
        graph = self.plan.graph
        chosen = []
        texts = {call.node: call.text for call in result.calls}
        for sender in graph.nodes[graph.answer].senders:
            if sender.node in texts:  # neither a tool nor skipped
                heard = await self._score(task, texts[sender.node])
                if heard.extracted and heard.extracted == score.extracted:
                    chosen.append(sender.node)
        return chosen


def _row(call: Call) -> CallRow:
    """What a sample keeps of a call."""
    report = call.report
    return CallRow(
        node=report.node,
        prompt_tokens=report.prompt_tokens,
        computed_tokens=call.total("computed"),
        realigned_tokens=call.total("realigned"),
        output_tokens=report.output_tokens,
        ttft_s=report.ttft_s,
    )


def _config(engine: Engine, plan: EvalPlan, quality: Mapping[str, Any], now: datetime) -> Config:
    def member(name: str, node: Node) -> object:
        agent = node.agent
        if isinstance(agent, Tool):
            return name, node.texts, agent.max_tokens
        template = plan.graph.template(name, engine.codec)
        return template.fingerprint, agent.sampling, agent.exact, agent.keep_begins

    def asked(tasks: Sequence[Task]) -> str:
        inputs = plan.graph.inputs
        return _digest([(task.id, sorted(task.inputs_for(inputs).items())) for task in tasks])

    nodes = plan.graph.nodes
    members = [member(name, node) for name, node in nodes.items()]
    conditions = Conditions(
        device=engine.device,
        dtype=engine.dtype,
        concurrent=plan.concurrent,
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
    )
    return Config(
        kvcomm=__version__,
        suite=plan.suite.name,
        graph=plan.graph.name,
        graph_digest=_digest([members, plan.graph.edges, plan.suite.ask]),
        model=engine.model,
        fingerprint=engine.fingerprint,
        modes=tuple(plan.modes),
        seed=plan.seed,
        repeats=plan.repeats,
        retries=plan.retries,
        tasks=len(plan.tasks),
        tasks_digest=asked(plan.tasks),
        now=now,
        gamma=plan.anchors.gamma,
        anchors=plan.anchors.capacity,
        policies={name: own.digest for name, own in plan.own.items()},
        warmup=len(plan.warmup),
        warmup_digest=asked(plan.warmup) if plan.warmup else "",
        agent_count=len({n.agent.name for n in nodes.values() if isinstance(n.agent, Agent)}),
        baselines=tuple(plan.baselines),
        conditions=(conditions,),
        **quality,
    )


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    """A task's id as a file name of its own."""
    clean = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60]
    return clean if clean == name else f"{clean}-{_digest(name)[:6]}"
