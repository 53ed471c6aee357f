"""A session: an engine, a reuse mode, and what was learned. Runs graphs."""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from kvcomm import __version__
from kvcomm.agents import Agent, Tool
from kvcomm.background import NOTICE_S, Background
from kvcomm.engine.base import Engine
from kvcomm.engine.models import cache_dir
from kvcomm.errors import ReuseRefused, RunCancelled, RunTimeout, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.message import well_formed
from kvcomm.reuse.auto import AUDIT_RATE, REPAIR_BUDGET, TARGET, Auto
from kvcomm.reuse.policy import Dense, Exact, Policy, policy_for
from kvcomm.reuse.state import load_audits, save_audits
from kvcomm.reuse.state_files import VERSIONED
from kvcomm.runtime.admission import Admission, Deadline
from kvcomm.runtime.apart import apart
from kvcomm.runtime.chat import Chat
from kvcomm.runtime.node import Interrupted
from kvcomm.runtime.priors import known, measure
from kvcomm.runtime.replay import replayed
from kvcomm.runtime.result import Call, Result, TraceRef
from kvcomm.runtime.saving import Saver
from kvcomm.runtime.scheduler import Scheduler
from kvcomm.runtime.stream_events import RunStart, Streamer, StreamEvent
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    CallInterrupted,
    Event,
    Failed,
    NodeInfo,
    Profiled,
    RunFinished,
    RunStarted,
    StateRead,
    Totals,
)
from kvcomm.trace.log import RunLog
from kvcomm.trace.record import Listener, Recorder, new_run_folder
from kvcomm.trace.retention import KEPT, Retention

log = logging.getLogger(__name__)

State = Literal["default"] | Path | str | None


@dataclass(frozen=True)
class _Options:
    """What one run is given beside its inputs."""

    out: Path | None
    replay: Path | None
    seed: int | None
    timeout_s: float | None


class Session:
    """Runs agent graphs on an engine.

    `reuse` is "auto", "exact", "kvcomm", "dense", or a policy of your own. `state` keeps what was
    learned between runs: "default" is the user's cache, a folder of your own, or None. `runs` is
    where run folders are made, None writes no traces; of those whose names no `out=` chose, the
    newest `keep_runs` are kept (None: all). At most `max_runs` runs go on at a time, the others
    wait in the order in which they came. `listeners` are called with every trace event; one that
    raises hears nothing more of its run, and a warning says so. Runs of a session share what it
    learns. It is saved behind their answers, once a minute at most, and by `save` and `close`.
    `namespace` keeps KV of sessions on one engine apart. `now` is what chat templates that write
    the day are told, in all runs: by default when the session was made.

    For "auto": `target_divergence` is the mean divergence from dense, in nats, that realigned calls
    keep below (0 is exact), `audit_rate` the share of them that is audited once they are known,
    `repair_budget` the most that may be computed of a realigned placeholder, as a share. Of a model
    that is new to kvcomm, `auto` has to know first how well its KV can be reused. That is measured
    behind the answers, and calls are exact until then; `warm_up` measures it now.

    Raises `UsageError` for an unknown mode and `ReuseRefused` when the model's KV cannot be reused
    and the mode asks for it ("auto" is then exact or dense, and the trace says why).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        reuse: str | Policy = "auto",
        seed: int = 0,
        state: State = "default",
        runs: Path | str | None = Path("runs"),
        keep_runs: int | None = KEPT,
        max_runs: int | None = None,
        listeners: Sequence[Callable[[Event], None]] = (),
        namespace: str = "",
        target_divergence: float = TARGET,
        audit_rate: float = AUDIT_RATE,
        repair_budget: float = REPAIR_BUDGET,
        now: datetime | None = None,
    ) -> None:
        self.engine = engine
        self._now = now or datetime.now()
        self.mode = reuse if isinstance(reuse, str) else reuse.name
        self.policy = policy_for(reuse) if isinstance(reuse, str) else reuse
        auto = Auto(target_divergence, audit_rate, repair_budget)
        self._auto = auto if reuse == "auto" and engine.capabilities.reuse else None
        self.policy = _possible(self.policy, self.mode, engine)
        self.seed = seed
        self.namespace = namespace
        self._runs = Path(runs) if runs is not None else None
        self._retention = Retention(self._runs, keep_runs) if self._runs is not None else None
        self._listeners = tuple(listeners)
        self._admission = Admission(max_runs)
        self._state = self._state_folder(state)
        self._learned: StateRead | None = None
        self._saver = Saver(self._write, engine)
        self._background: Background | None = None
        self._measuring: Future[None] | None = None
        self._opening = threading.Lock()

    def _state_folder(self, state: State) -> Path | None:
        if state is None or not (self.policy.realigns or self._auto):
            return None
        if state == "default":
            return cache_dir() / "state" / VERSIONED / self.engine.fingerprint
        return Path(state)

    def run(
        self,
        graph: AgentGraph,
        task: str | None = None,
        *,
        out: Path | None = None,
        replay: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Result:
        """Run `graph` and wait for its answer; `task` and `inputs` fill the graph's inputs.

        `replay` is a trace whose plans are used again, whatever the session's mode: the same
        positions are computed and the others realigned, with what is known of their offsets now.
        Its prompts are of the trace's day. `seed` is used instead of the session's. `timeout_s` is
        the time limit of the whole run, with its wait for others (`max_runs`).
        Raises `UsageError` for missing inputs or a prompt beyond the context, `NodeFailed` when an
        agent fails, `RunTimeout` at the time limit, `RunCancelled` when the session is closed
        meanwhile. Works in a thread that runs an event loop of its own (a notebook).
        """
        options = _Options(out, replay, seed, timeout_s)
        try:
            return self._loop().run(self._start(graph, task, inputs, options))
        except CancelledError:
            raise RunCancelled from None

    async def arun(
        self,
        graph: AgentGraph,
        task: str | None = None,
        *,
        out: Path | None = None,
        replay: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Result:
        """`run`, asynchronous. Cancelling it cancels the run."""
        options = _Options(out, replay, seed, timeout_s)
        return await self._start(graph, task, inputs, options)

    def stream(
        self,
        graph: AgentGraph,
        task: str | None = None,
        *,
        out: Path | None = None,
        replay: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Iterator[StreamEvent | Result]:
        """Run `graph`: text as its nodes write it (`Delta`), what happens beside, and the `Result`.

        Leaving the iteration early, or closing it, cancels the run and waits until it is over.
        """
        options = _Options(out, replay, seed, timeout_s)
        items: queue.Queue[StreamEvent | Result | BaseException] = queue.Queue()

        async def produce() -> None:
            try:
                items.put(await self._start(graph, task, inputs, options, items.put))
            except BaseException as error:
                items.put(error)

        background, running = self._loop(), produce()
        background.start(running)
        try:
            while True:
                try:
                    item = items.get(timeout=NOTICE_S)
                except queue.Empty:
                    continue
                if isinstance(item, asyncio.CancelledError):
                    raise RunCancelled
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Result):
                    return
        finally:
            background.cancel(running)

    async def astream(
        self,
        graph: AgentGraph,
        task: str | None = None,
        *,
        out: Path | None = None,
        replay: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> AsyncIterator[StreamEvent | Result]:
        """`stream`, asynchronous. Leaving the iteration early cancels the run."""
        options = _Options(out, replay, seed, timeout_s)
        items: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        put = items.put_nowait
        task_ = asyncio.create_task(self._start(graph, task, inputs, options, put))
        task_.add_done_callback(lambda _: items.put_nowait(None))
        try:
            while (item := await items.get()) is not None:
                yield item
            yield await task_
        finally:
            task_.cancel()
            await asyncio.gather(task_, return_exceptions=True)

    def chat(self, graph: AgentGraph) -> Chat:
        """A new conversation with `graph`: its turns are run one after another."""
        return Chat(self, graph)

    async def _start(
        self,
        graph: AgentGraph,
        task: str | None,
        inputs: Mapping[str, str],
        options: _Options,
        put: Callable[[StreamEvent], None] | None = None,
    ) -> Result:
        """Check what is asked for, and run it when its turn comes; `put` takes a stream's items."""
        plans, now = replayed(options.replay, graph) if options.replay else (None, None)
        given = _inputs(graph, task, inputs)
        seed = self.seed if options.seed is None else options.seed
        if not -(2**63) <= seed < 2**63:
            raise UsageError(f"the seed {seed} has more than 64 bits: use a smaller one")
        deadline, asked = Deadline(options.timeout_s), time.perf_counter()
        await self._admission.enter(deadline)
        try:
            queued_s = time.perf_counter() - asked
            return await self._run(
                graph, given, options.out, put, plans, seed, now or self._now, deadline, queued_s
            )
        finally:
            self._admission.leave()

    async def _run(
        self,
        graph: AgentGraph,
        inputs: Mapping[str, str],
        out: Path | None,
        put: Callable[[StreamEvent], None] | None,
        plans: Mapping[str, Policy] | None,
        seed: int,
        now: datetime,
        deadline: Deadline,
        queued_s: float,
    ) -> Result:
        if plans and not self.engine.capabilities.reuse:
            raise ReuseRefused(
                f"{self.engine.model} cannot reuse KV: {self.engine.capabilities.reason}; "
                "run it without a replay"
            )
        async with deadline.within("reading what was learned before"):
            learned = await self._read_state()
        auto = None if plans else self._auto
        # One agent alone has nothing to realign.
        unmeasured = auto is not None and len(graph.nodes) > 1 and not self._informed()
        tools = [node.name for node in graph.nodes.values() if isinstance(node.agent, Tool)]
        streamer = Streamer(self.engine.codec, tools, put) if put else None
        scheduler = Scheduler(
            self.engine,
            graph,
            self.policy,
            auto=auto,
            plans=plans,
            inputs=inputs,
            seed=seed,
            namespace=self.namespace,
            on_token=streamer.token if streamer else None,
            codec=self.engine.codec.at(now),
        )
        folder = None
        if out is not None or self._runs is not None:
            if self._retention is not None and out is None:
                await apart(self._retention.tidy)
            folder = new_run_folder(graph.name, out, self._runs or Path("runs"))
        name = folder.name if folder else secrets.token_hex(4)
        mine: list[Listener] = [RunLog(name), *([streamer] if streamer else [])]
        if put:
            put(RunStart(name, folder))
        recorder = Recorder(folder, [*mine, *self._listeners])
        began = time.perf_counter()
        header = self._header(graph, inputs, seed)
        recorder.write(RunStarted, **header, now=now, automatic=out is None)
        if learned:
            recorder.write(StateRead, **learned.model_dump(exclude={"kind", "v", "t"}))
        if auto and auto.priors:
            recorder.write(Profiled, priors=dict(auto.priors))
        calls: list[Call] = []
        status: Literal["ok", "failed", "interrupted"] = "failed"
        answer: str | None = None
        try:
            try:
                async with deadline.within():
                    await scheduler.run(recorder, calls)
            except RunTimeout as error:
                if not scheduler.answered:
                    raise
                scheduler.warnings.append(f"audits of the answer were cut short: {error}")
            answer = scheduler.answer.strip()
            status = "ok"
        except asyncio.CancelledError:
            status = "interrupted"
            raise
        except BaseException as error:
            recorder.write(Failed, node=None, error=str(error) or type(error).__name__)
            raise
        finally:
            ended = scheduler.answered_at if status == "ok" else 0.0
            wall_s = (ended or time.perf_counter()) - began
            cut: Interrupted = [] if status == "ok" else scheduler.interrupted
            totals = _totals(calls, cut, scheduler.audits, wall_s, queued_s)
            recorder.write(
                RunFinished, status=status, answer=answer, totals=totals, calls=len(calls)
            )
            recorder.close()
        # Only computed calls teach.
        if self._auto is not None or any(call.report.dense for call in calls):
            self._changed()
        warnings = [*scheduler.warnings, *recorder.warnings]
        if self._saver.failed:
            warnings.append(self._saver.failed)
        if unmeasured:
            warnings.append(
                f"exact, because it is not measured yet how well {self.engine.model} can reuse KV: "
                "that goes on behind the answers, once (`warm_up` does it now)"
            )
            self._measure_behind()
        return Result(
            answer,
            self.engine.model,
            self.mode,
            calls,
            scheduler.audits,
            totals,
            TraceRef(folder),
            tuple(warnings),
            scheduler.said,
            scheduler.tools,
        )

    def _header(self, graph: AgentGraph, inputs: Mapping[str, str], seed: int) -> dict[str, object]:
        return {
            "kvcomm": __version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": self.engine.model,
            "device": self.engine.device,
            "dtype": self.engine.dtype,
            "mode": self.mode,
            "seed": seed,
            "graph": graph.name,
            "answer_node": graph.answer,
            "inputs": dict(inputs),
            "nodes": [
                NodeInfo(
                    name=node.name,
                    agent=node.agent.name,
                    round=node.round,
                    senders=node.hears,
                    exact=node.agent.exact,
                    tool=isinstance(node.agent, Tool),
                    replica=node.agent.replica if isinstance(node.agent, Agent) else None,
                )
                for node in graph.nodes.values()
            ],
        }

    def _informed(self) -> bool:
        """Whether `auto` knows the model's priors, or needs none."""
        auto = self._auto
        if auto is None or auto.priors or auto.target == 0:
            return True
        priors = known(self.engine, auto.levels)
        if priors is not None:
            auto.priors = priors
        return priors is not None

    @property
    def measuring(self) -> bool:
        """Whether the model is being measured behind the answers."""
        return self._measuring is not None and not self._measuring.done()

    def _measure_behind(self) -> None:
        """Measure the model's priors when nothing else needs the engine, unless that goes on."""
        if not self.measuring:
            self._measuring = self._loop().start(self._measure())

    async def _measure(self) -> None:
        try:
            await self.awarm_up()
        except Exception as error:
            log.warning(
                "%s could not be measured, and is again behind the next run: %s",
                self.engine.model,
                str(error) or type(error).__name__,
            )

    def warm_up(self) -> None:
        """Do now what the first runs would have to wait for, or do without.

        Reads what earlier sessions learned, and measures how well the model can reuse KV (`auto`,
        where it is not known: some 40 forwards over up to 1,100 tokens). Raises `StateError` for
        another model's state, and `KvcommError` where there is no room to measure.
        """
        self._loop().run(self.awarm_up())

    async def awarm_up(self) -> None:
        """`warm_up`, asynchronous."""
        await self._read_state()
        if self._auto is not None and not self._informed():
            self._auto.priors = await measure(self.engine, self._auto.levels)

    async def _read_state(self) -> StateRead | None:
        """What earlier runs learned, read once a session."""
        if self._state is None:
            return None
        if self._learned is None:
            read = await self.engine.load_state(self._state, self.namespace)
            reason, auto = read.reason, self._auto
            if auto and (refused := load_audits(self._state, auto, self.namespace)):
                reason += f"; set aside: {refused}"
            self._learned = StateRead(
                path=read.path, templates=read.templates, samples=read.samples, reason=reason
            )
        return self._learned

    async def save(self) -> None:
        """Save what was learned since the last time, if the session has a state folder.

        Raises `StateError` when it cannot be written; what was learned stays, to be saved later.
        """
        await apart(self._saver.flush)

    def _changed(self) -> None:
        """Something was learned."""
        if self._state is not None:
            self._saver.changed()

    async def _write(self) -> None:
        """Write what is new; called by the saver, on its thread."""
        assert self._state is not None
        written = await self.engine.save_state(self._state, self.namespace)
        if self._auto is not None:
            written += save_audits(self._state, self._auto)
        log.debug("%d bytes of what was learned are written to %s", written, self._state)

    def _loop(self) -> Background:
        with self._opening:
            if self._background is None:
                self._background = Background()
            return self._background

    def close(self) -> None:
        """Cancel what `run` and `stream` have under way, and save what was learned.

        Returns when all that is over. Runs on an event loop of yours (`arun`, `astream`) end with
        their tasks. The engine stays open: it may serve other sessions.
        """
        with self._opening:
            background, self._background = self._background, None
        if background is not None:
            background.close()
        self._saver.flush_or_log()

    def __repr__(self) -> str:
        space = f", namespace {self.namespace!r}" if self.namespace else ""
        return f"<Session {self.mode} on {self.engine!r}{space}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _possible(policy: Policy, mode: str, engine: Engine) -> Policy:
    """`policy`, or for "auto" the best one that the engine can follow.

    Raises `ReuseRefused` for any other that it cannot follow.
    """
    able = engine.capabilities
    best = "exact" if able.exact else "dense"
    if mode == "auto" and not able.reuse:
        reason = f"{best}, because {able.reason}"
        return Exact(reason, hands_over=False) if able.exact else Dense(reason)
    if (policy.realigns and not able.reuse) or (policy.ahead and not able.exact):
        others = "dense" if best == "dense" else "exact or dense"
        raise ReuseRefused(
            f"{engine.model} cannot reuse KV: {able.reason}; use --reuse {others} (or auto)"
        )
    return policy


def _inputs(graph: AgentGraph, task: str | None, more: Mapping[str, str]) -> dict[str, str]:
    """The texts of a run, checked against what the graph asks for."""
    given = dict(more)
    if task is not None:
        given["task"] = task
    for name in graph.inputs:
        if name not in given:
            raise UsageError(f"the graph `{graph.name}` needs the input `{name}`: pass {name}=...")
        text: object = given[name]
        if not isinstance(text, str):
            raise UsageError(
                f"the input `{name}` is {text!r:.60}, which is no text: pass one string. Where it "
                "is a list of messages, hold the conversation with chat = session.chat(graph), and "
                "give every turn's text to chat.run"
            )
        if not text.strip():
            raise UsageError(f"the input `{name}` is empty: give it some text")
    unknown = [name for name in given if name not in graph.inputs]
    if unknown:
        raise UsageError(
            f"the graph `{graph.name}` has no input `{unknown[0]}`: it has "
            f"{', '.join(f'`{name}`' for name in graph.inputs)}"
        )
    return {name: well_formed(text) for name, text in given.items()}


def _totals(
    calls: Sequence[Call],
    interrupted: Interrupted,
    audits: Sequence[Audited],
    wall_s: float,
    queued_s: float,
) -> Totals:
    reports: list[CallFinished | CallInterrupted] = [call.report for call in calls]
    reports += [report for report, _ in interrupted]
    steps = [*(call.steps for call in calls), *(steps for _, steps in interrupted)]
    prompt = sum(report.prompt_tokens for report in reports)
    computed = sum(step.computed for segments in steps for step in segments)
    return Totals(
        prompt_tokens=prompt,
        computed_tokens=computed,
        reused_tokens=prompt - computed,
        output_tokens=sum(report.output_tokens for report in reports),
        extra={
            "base": sum(call.report.base_tokens for call in calls),
            "audit": sum(audit.tokens for audit in audits),
            "redone": sum(report.redone_tokens for report in reports),
        },
        wall_s=wall_s,
        queued_s=queued_s,
    )
