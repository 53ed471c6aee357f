"""Runs on replicas: sent there whole; their events, streams and audits come back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

from kvcomm.errors import KvcommError, ReplicaLost
from kvcomm.runtime.admission import Deadline
from kvcomm.runtime.execute import Executor, RunRequest, zero_totals
from kvcomm.runtime.result import Result, TraceRef
from kvcomm.runtime.stream_events import Streamer, StreamEvent
from kvcomm.runtime.twins import Put
from kvcomm.trace.events import Audited, Event, Failed, RunFinished, RunStarted
from kvcomm.trace.record import Recorder

# A run that has lost so many replicas is not begun again: it may be what kills them.
LOSSES = 3
STREAMED = get_args(StreamEvent)


@dataclass(frozen=True)
class RemoteExecutor(Executor):
    """Executes runs on the replica with the fewest, and begins again elsewhere when it is lost.

    Replicas `make` a session like this one on their engine, and know it by its `name`.
    """

    engine: Any
    make: Callable[[Any], Any] = field(kw_only=True)
    name: str = field(default_factory=partial(secrets.token_hex, 8))

    def __post_init__(self) -> None:
        if (auto := self.auto) is not None:
            self.engine.hear(self.name, lambda taken: auto.record_all(taken or ()))

    def prepare(self, request: RunRequest, put: Put | None) -> tuple[Any, list[Streamer]]:
        """See `Executor.prepare`; what is streamed comes from the replica."""
        super().prepare(request, None)
        return put, []

    async def execute(
        self, run: Any, request: RunRequest, recorder: Recorder, deadline: Deadline
    ) -> Result:
        """See `Executor.execute`."""
        back = _Back(recorder, run)
        try:
            while True:
                try:
                    result = await self._attempt(request, deadline, back)
                except ReplicaLost as error:
                    back.begin_again(error)
                else:
                    warnings = (*back.again, *recorder.warnings, *result.warnings)
                    trace = TraceRef(recorder.path)
                    return replace(result, trace=trace, warnings=warnings, audits=back.audits)
        except BaseException as error:
            back.cut_short(error, request.queued_s)
            raise
        finally:
            recorder.release()

    async def _attempt(self, request: RunRequest, deadline: Deadline, back: _Back) -> Result:
        graph, auto, engine = request.graph, self.auto, self.engine
        agents = repr([node.agent for node in graph.nodes.values()])
        key = hashlib.sha256(f"{self.namespace}\n{agents}".encode()).hexdigest()
        talk = graph.conversation
        async with deadline.within("waiting for a replica"):
            replica = await engine.place(talk or key, stay=bool(talk))
        known = (auto.to_json(), auto.priors) if auto else ({}, {})
        times = (deadline.seconds, deadline.spent_s)
        name, streams = secrets.token_hex(8), back.put is not None
        run = RemoteRun(name, self.name, self.make, request, streams, times, known)
        nodes = {f"the node `{name}`": node.agent for name, node in graph.nodes.items()}
        task = engine.pickled(run, {**nodes, "the session's policy": self.make})
        if auto is not None:
            back.recorder.hold()
            engine.hear(run.name, back.audited)
        learns = self.policy.options.realigns or auto is not None
        try:
            result: Result = await engine.do(replica, task, back, learns=learns)
        except BaseException:
            engine.unhear(run.name)
            raise
        return result


@dataclass(frozen=True)
class RemoteRun:
    """A run as it is sent: `known` are all audits and priors so far, `times` a deadline's."""

    name: str
    session: str
    make: Callable[[Any], Any]
    request: RunRequest
    streams: bool
    times: tuple[float | None, float]
    known: tuple[Any, Any]

    async def __call__(self, host: Any, emit: Callable[[Any], None]) -> Result:
        """On the replica: run on its session of that name."""
        session = host.session(self.session, self.make)
        if session.auto is not None:
            session.auto.adopt(*self.known)

        def heard(event: Event) -> None:
            if isinstance(event, Audited):
                host.tell(self.name, event)
            else:
                emit(event)

        closed = partial(host.tell, self.name, None)
        deadline, put = Deadline(*self.times), emit if self.streams else None
        executor: Executor = session.executor
        run, streamers = executor.prepare(self.request, put)
        recorder = Recorder(None, [*streamers, heard], texts=True, on_close=closed)
        return replace(await executor.execute(run, self.request, recorder, deadline), audits=[])


class _Back:
    """Takes what comes back of one run: events, and items of its stream."""

    def __init__(self, recorder: Recorder, put: Put | None) -> None:
        self.recorder, self.put = recorder, put
        self._begun = self._ended = False
        self.again: list[str] = []
        self.audits: list[Audited] = []

    async def __call__(self, item: Any) -> None:
        if isinstance(item, STREAMED):
            assert self.put is not None
            self.put(item)
            return
        if not (isinstance(item, RunStarted) and self._begun):
            self.recorder.append(item)
        self._begun, self._ended = True, isinstance(item, RunFinished)

    def audited(self, event: Audited | None) -> None:
        """An audit of the run; None: there will be no more."""
        if event is None:
            self.recorder.release()
        else:
            self.audits.append(event)
            self.recorder.append(event)

    def begin_again(self, error: ReplicaLost) -> None:
        """What has come is void. Raises `KvcommError` when too many replicas were lost."""
        if len(self.again) + 1 == LOSSES:
            raise KvcommError(
                f"the run has lost {LOSSES} replicas: it may be what ends them, for want "
                "of memory, say (`ray status`, and the logs under /tmp/ray)"
            ) from None
        why = f"{error}: the run began again on another one"
        self.again.append(why)
        if self._begun:
            self.recorder.begin_again(why)

    def cut_short(self, error: BaseException, queued_s: float) -> None:
        """The run is over, and no replica says so."""
        if not self._begun or self._ended:
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        if not cancelled:
            self.recorder.write(Failed, node=None, error=str(error) or type(error).__name__)
        status = "interrupted" if cancelled else "failed"
        totals = zero_totals(queued_s)
        self.recorder.write(RunFinished, status=status, answer=None, totals=totals, calls=0)
