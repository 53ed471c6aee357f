"""A session: an engine, a reuse mode, and what was learned. Runs graphs."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from kvcomm.background import Background
from kvcomm.engine.base import Engine, Replicated
from kvcomm.engine.models import cache_dir
from kvcomm.errors import ReuseRefused, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.message import well_formed
from kvcomm.reuse.auto import AUDIT_RATE, REPAIR_BUDGET, TARGET, Auto
from kvcomm.reuse.policy import Dense, Exact, Policy, policy_for
from kvcomm.reuse.state_files import VERSIONED
from kvcomm.runtime.admission import Admission, Deadline
from kvcomm.runtime.apart import apart
from kvcomm.runtime.audits import AuditQueue
from kvcomm.runtime.chat import Chat
from kvcomm.runtime.execute import Executor, RunRequest
from kvcomm.runtime.remote import RemoteExecutor
from kvcomm.runtime.replay import replayed
from kvcomm.runtime.result import Result
from kvcomm.runtime.session_state import SessionState
from kvcomm.runtime.stream_events import RunStart
from kvcomm.runtime.twins import LISTENER, Put, steps, streams, waits
from kvcomm.trace.events import Event
from kvcomm.trace.log import RunLog
from kvcomm.trace.record import Recorder, new_run_folder
from kvcomm.trace.retention import KEPT, Retention

# A folder, "default" for that of the user's cache, or None.
State = Path | str | None


class Session(AbstractContextManager["Session"]):
    """Runs agent graphs on an engine.

    `reuse` is "auto", "exact", "kvcomm", "dense", or a policy of your own. `state` keeps what was
    learned between runs: "default" is the user's cache, a folder of your own, or None. `runs` is
    where run folders are made, None writes no traces; of those whose names no `out=` chose, the
    newest `keep_runs` are kept (None: all). At most `max_runs` runs go on at a time, the others
    wait in the order in which they came. `listeners` are called with every trace event; one that
    raises hears nothing more of its run, and a warning says so. Runs of a session share what it
    learns. It is saved behind their answers, once a minute at most, and by `save` and `close`.
    `arun` is for callers with an event loop. `astream` does the same, and yields text as nodes
    write it (`Delta`), what happens beside, and the `Result`; leaving it early cancels the run and
    waits until it is over. `run`, `stream`, `warm_up` and `drain` are the same for callers that
    wait, also in a thread that runs an event loop of its own (a notebook). `namespace` keeps KV of
    sessions on one engine apart. Chat templates that write the day are told `now`, in all runs: an
    attribute, by default the time when the session was made.

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
    ) -> None:
        self.engine = engine
        self.now = datetime.now()
        self.mode = reuse if isinstance(reuse, str) else reuse.name
        policy = policy_for(reuse) if isinstance(reuse, str) else reuse
        auto = Auto(target_divergence, audit_rate, repair_budget)
        self.auto = auto if reuse == "auto" and engine.capabilities.reuse else None
        self.policy = _possible(policy, self.mode, engine)
        self.seed = seed
        self.namespace = namespace
        self._runs = Path(runs) if runs is not None else None
        self._retention = Retention(self._runs, keep_runs) if self._runs is not None else None
        self._listeners = tuple(listeners)
        self._admission = Admission(max_runs)
        folder = None
        if state is not None and (self.policy.options.realigns or self.auto):
            default = cache_dir() / "state" / VERSIONED / engine.fingerprint
            folder = default if state == "default" else Path(state)
        self._learned = SessionState(engine, folder, namespace, self.auto)
        self._audits: AuditQueue | None = None
        self._audited = True
        executed = (engine, self.mode, self.policy, namespace, self.auto)
        if isinstance(engine, Replicated):
            make = partial(
                type(self),
                reuse=reuse,
                state=None,
                runs=None,
                namespace=namespace,
                target_divergence=target_divergence,
                audit_rate=audit_rate,
                repair_budget=repair_budget,
            )
            self.executor: Executor = RemoteExecutor(*executed, make=make)
        else:
            if self.auto is not None:
                self._audits = AuditQueue(engine, self.auto, self._learned.changed)
            self.executor = Executor(*executed, self._audits)
        self._background: Background | None = None
        self._measuring: Future[None] | None = None
        self._opening = threading.Lock()

    async def arun(
        self,
        /,
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
        meanwhile. Cancelling it cancels the run.
        """
        put = LISTENER.get()
        LISTENER.set(None)  # runs that its tools begin are no part of the stream
        plans, now = replayed(replay, graph) if replay else ({}, None)
        able = self.engine.capabilities
        if plans and not able.reuse:
            raise ReuseRefused(
                f"{self.engine.model} cannot reuse KV: {able.reason}; run it without a replay"
            )
        given = _inputs(graph, task, inputs)
        seed = self.seed if seed is None else seed
        if not -(2**63) <= seed < 2**63:
            raise UsageError(f"the seed {seed} has more than 64 bits: use a smaller one")
        deadline, asked = Deadline(timeout_s), time.perf_counter()
        await self._admission.enter(deadline)
        try:
            queued_s = time.perf_counter() - asked
            async with deadline.within("reading what was learned before"):
                learned = await self._learned.read()
            # One agent alone has nothing to realign.
            measures = self.auto is not None and not plans and len(graph.nodes) > 1
            request = RunRequest(
                graph,
                given,
                seed,
                now or self.now,
                plans,
                learned,
                unmeasured=measures and not self._learned.informed,
                automatic=out is None,
                queued_s=queued_s,
            )
            result = await self._recorded(request, out, deadline, put)
        finally:
            self._admission.leave()
        # Only computed calls teach.
        if self.auto is not None or any(call.report.dense for call in result.calls):
            self._learned.changed()
        if request.unmeasured and not self.measuring:
            self._measuring = self._loop().start(self._learned.measure_behind())
        if self._learned.failed:
            result = replace(result, warnings=(*result.warnings, self._learned.failed))
        return result

    astream = streams(arun)
    run = waits(arun)
    stream = steps(astream)

    def chat(self, graph: AgentGraph) -> Chat:
        """A new conversation with `graph`: its turns are run one after another."""
        return Chat(self, graph)

    async def _recorded(
        self, request: RunRequest, out: Path | None, deadline: Deadline, put: Put | None
    ) -> Result:
        """Run, with a trace in a folder of its own, if one is wanted."""
        graph, folder = request.graph, None
        run, streamer = self.executor.prepare(request, put)  # what cannot run leaves no folder
        if out is not None or self._runs is not None:
            if self._retention is not None and out is None:
                await apart(self._retention.tidy)
            folder = new_run_folder(graph.name, out, self._runs or Path("runs"))
        name = folder.name if folder else secrets.token_hex(4)
        if put:
            put(RunStart(name, folder))
        recorder = Recorder(folder, [RunLog(name), *streamer, *self._listeners])
        return await self.executor.execute(run, request, recorder, deadline)

    @property
    def measuring(self) -> bool:
        """Whether the model is being measured behind the answers."""
        return self._measuring is not None and not self._measuring.done()

    async def awarm_up(self) -> None:
        """Do now what the first runs would have to wait for, or do without.

        Reads what earlier sessions learned, and measures how well the model can reuse KV (`auto`,
        where it is not known: some 40 forwards over up to 1,100 tokens). Raises `StateError` for
        another model's state, and `KvcommError` where there is no room to measure.
        """
        await self._learned.read()
        await self._learned.measure()

    async def adrain(self) -> None:
        """Wait until what goes on behind the answers is done: audits, and learning from them.

        `close` does so, too, and the end of a `with` block.
        """
        if self._audits is not None:
            await self._audits.drain()
        await self.engine.drain()

    warm_up = waits(awarm_up)
    drain = waits(adrain)

    @property
    def auditing(self) -> int:
        """How many calls wait to be audited, or are being."""
        return self._audits.waiting if self._audits is not None else 0

    async def save(self) -> None:
        """Save what was learned since the last time, if the session has a state folder.

        Raises `StateError` when it cannot be written; what was learned stays, to be saved later.
        """
        await self._learned.save()

    def _loop(self) -> Background:
        with self._opening:
            if self._background is None:
                self._background = Background()
            return self._background

    def close(self, *, audits: bool = True) -> None:
        """Cancel what `run` and `stream` have under way, finish audits, and save what was learned.

        Without `audits`, and after Ctrl-C in a `with` block, those that are not done are given up.
        Returns when all that is over. Runs on an event loop of yours (`arun`, `astream`) end with
        their tasks. The engine stays open: it may serve other sessions.
        """
        with self._opening:
            background, self._background = self._background, None
        if background is not None:
            background.close()
        self._audited = self._audited and audits  # once given up, they stay so
        if self._audits is not None:
            finish = self._audits.close if self._audited else self._audits.abandon
            finish()
        elif self.auto is not None and self._audited:  # on replicas
            with closing(Background()) as there:
                there.run(self.engine.drain())
        self._learned.close()

    def __repr__(self) -> str:
        space = f", namespace {self.namespace!r}" if self.namespace else ""
        return f"<Session {self.mode} on {self.engine!r}{space}>"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(audits=kind is None or not issubclass(kind, KeyboardInterrupt))


def _possible(policy: Policy, mode: str, engine: Engine) -> Policy:
    """`policy`, or for "auto" the best one that the engine can follow.

    Raises `ReuseRefused` for any other that it cannot follow.
    """
    able = engine.capabilities
    best = "exact" if able.exact else "dense"
    if mode == "auto" and not able.reuse:
        reason = f"{best}, because {able.reason}"
        return Exact(reason, publishes=False) if able.exact else Dense(reason)
    options = policy.options
    if (options.realigns and not able.reuse) or (options.ahead and not able.exact):
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
