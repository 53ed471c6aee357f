"""Runs on replicas: sent there whole; their events, streams and audits come back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from kvcomm.engine.base import Replicated
from kvcomm.errors import KvcommError, ReplicaLost
from kvcomm.reuse.auto import Auto
from kvcomm.runtime.admission import Deadline
from kvcomm.runtime.execute import RunRequest, zero_totals
from kvcomm.runtime.result import Result, TraceRef
from kvcomm.runtime.stream_events import StreamEvent
from kvcomm.trace.events import Audited, Event, Failed, RunFinished, RunStarted
from kvcomm.trace.record import Recorder

# A run that has lost so many replicas is not begun again: it may be what kills them.
LOSSES = 3
STREAMED = get_args(StreamEvent)
Put = Callable[[StreamEvent], None]


@dataclass(frozen=True)
class RemoteSession:
    """A session as replicas know it: `name`, how one is `made` on an engine, and what it learns."""

    name: str
    make: Callable[[Any], Any]
    namespace: str
    auto: Auto | None
    learns: bool


class RemoteExecutor:
    """Executes runs on the replica with the fewest, and begins again elsewhere when it is lost."""

    def __init__(self, engine: Replicated, session: RemoteSession) -> None:
        self._engine = engine
        self._session = session
        if (auto := session.auto) is not None:
            engine.hear(session.name, lambda taken: auto.record_all(taken or ()))

    async def execute(
        self, request: RunRequest, recorder: Recorder, deadline: Deadline, put: Put | None
    ) -> Result:
        """See `Executor.execute`; `put` takes a stream's items."""
        back = _Back(recorder, put)
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
        graph, session = request.graph, self._session
        agents = repr([node.agent for node in graph.nodes.values()])
        key = hashlib.sha256(f"{session.namespace}\n{agents}".encode()).hexdigest()
        async with deadline.within("waiting for a replica"):
            replica = await self._engine.place(
                graph.conversation or key, stay=bool(graph.conversation)
            )
        auto = session.auto
        known = (auto.to_json(), auto.priors) if auto else ({}, {})
        run = RemoteRun(
            secrets.token_hex(8),
            session,
            request,
            back.streams,
            deadline.seconds,
            deadline.spent_s,
            known,
        )
        nodes = {f"the node `{name}`": node.agent for name, node in graph.nodes.items()}
        task = self._engine.pickled(run, {**nodes, "the session's policy": session.make})
        if auto is not None:
            back.recorder.hold()
            self._engine.hear(run.name, back.audited)
        try:
            result: Result = await self._engine.do(replica, task, back, learns=session.learns)
        except BaseException:
            self._engine.unhear(run.name)
            raise
        return result


@dataclass(frozen=True)
class RemoteRun:
    """A run as it is sent: `known` are all audits and priors so far."""

    name: str
    session: RemoteSession
    request: RunRequest
    streams: bool
    seconds: float | None
    spent_s: float
    known: tuple[Any, Any]

    async def __call__(self, host: Any, emit: Callable[[Any], None]) -> Result:
        """On the replica: run on its session of that name."""
        session = host.session(self.session.name, self.session.make)
        if session.auto is not None:
            session.auto.adopt(*self.known)

        def heard(event: Event) -> None:
            if isinstance(event, Audited):
                host.tell(self.name, event)
            else:
                emit(event)

        closed = partial(host.tell, self.name, None)
        deadline = Deadline(self.seconds, self.spent_s)
        put = emit if self.streams else None
        result: Result = await session.execute(self.request, heard, closed, deadline, put)
        return replace(result, audits=[])


class _Back:
    """Takes what comes back of one run: events, and items of its stream."""

    def __init__(self, recorder: Recorder, put: Put | None) -> None:
        self.recorder, self._put = recorder, put
        self.streams = put is not None
        self._begun = self._ended = False
        self.again: list[str] = []
        self.audits: list[Audited] = []

    async def __call__(self, item: Any) -> None:
        if isinstance(item, STREAMED):
            assert self._put is not None
            self._put(item)
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
