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
        graph, session, lost = request.graph, self._session, 0
        agents = repr([node.agent for node in graph.nodes.values()])
        key = hashlib.sha256(f"{session.namespace}\n{agents}".encode()).hexdigest()
        nodes = {f"the node `{name}`": node.agent for name, node in graph.nodes.items()}
        parts = {**nodes, "the session's policy": session.make}
        back = _Back(recorder, put)
        try:
            while True:
                async with deadline.within("waiting for a replica"):
                    replica = await self._engine.place(
                        graph.conversation or key, stay=bool(graph.conversation)
                    )
                auto = session.auto
                known = (auto.to_json(), auto.priors) if auto else ({}, {})
                run = secrets.token_hex(8)
                order = (
                    run,
                    session,
                    request,
                    put is not None,
                    deadline.seconds,
                    deadline.spent_s,
                    known,
                )
                task = self._engine.pickled(partial(_executed, *order), parts)
                if auto is not None:
                    recorder.hold()
                    self._engine.hear(run, back.audited)
                try:
                    result: Result = await self._engine.do(
                        replica, task, back, learns=session.learns
                    )
                except ReplicaLost as error:
                    self._engine.unhear(run)
                    lost += 1
                    if lost == LOSSES:
                        raise KvcommError(
                            f"the run has lost {lost} replicas: it may be what ends them, for want "
                            "of memory, say (`ray status`, and the logs under /tmp/ray)"
                        ) from None
                    back.begin_again(f"{error}: the run began again on another one")
                except BaseException:
                    self._engine.unhear(run)
                    raise
                else:
                    warnings = (*back.again, *recorder.warnings, *result.warnings)
                    trace = TraceRef(recorder.path)
                    return replace(result, trace=trace, warnings=warnings, audits=back.audits)
        except BaseException as error:
            back.cut_short(error, request.queued_s)
            raise
        finally:
            recorder.release()


class _Back:
    """Takes what comes back of one run: events, and items of its stream."""

    def __init__(self, recorder: Recorder, put: Put | None) -> None:
        self._recorder, self._put = recorder, put
        self._begun = self._ended = False
        self.again: list[str] = []
        self.audits: list[Audited] = []

    async def __call__(self, item: Any) -> None:
        if isinstance(item, STREAMED):
            assert self._put is not None
            self._put(item)
            return
        if not (isinstance(item, RunStarted) and self._begun):
            self._recorder.append(item)
        self._begun, self._ended = True, isinstance(item, RunFinished)

    def audited(self, event: Audited | None) -> None:
        """An audit of the run; None: there will be no more."""
        if event is None:
            self._recorder.release()
        else:
            self.audits.append(event)
            self._recorder.append(event)

    def begin_again(self, why: str) -> None:
        """What has come is void."""
        self.again.append(why)
        if self._begun:
            self._recorder.begin_again(why)

    def cut_short(self, error: BaseException, queued_s: float) -> None:
        """The run is over, and no replica says so."""
        if not self._begun or self._ended:
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        if not cancelled:
            self._recorder.write(Failed, node=None, error=str(error) or type(error).__name__)
        status = "interrupted" if cancelled else "failed"
        totals = zero_totals(queued_s)
        self._recorder.write(RunFinished, status=status, answer=None, totals=totals, calls=0)


async def _executed(
    run: str,
    session: RemoteSession,
    request: RunRequest,
    streams: bool,
    seconds: float | None,
    spent_s: float,
    known: Any,
    host: Any,
    emit: Callable[[Any], None],
) -> Any:
    """On the replica: run on its session of that name, which knows all audits so far."""
    here = host.session(session.name, session.make)
    if here.auto is not None:
        here.auto.adopt(*known)

    def heard(event: Event) -> None:
        if isinstance(event, Audited):
            host.tell(run, event)
        else:
            emit(event)

    def closed() -> None:
        host.tell(run, None)

    deadline, put = Deadline(seconds, spent_s), emit if streams else None
    result = await here.execute(request, heard, closed, deadline, put)
    return replace(result, audits=[])
