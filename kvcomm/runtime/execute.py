"""One run from its request to its result: the trace, the graph's run, totals and warnings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from kvcomm.agents import Tool
from kvcomm.engine.base import Engine
from kvcomm.graphs import AgentGraph
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.admission import Deadline
from kvcomm.runtime.audits import Audit, AuditQueue
from kvcomm.runtime.call import Answered
from kvcomm.runtime.report import Interrupted
from kvcomm.runtime.result import Call, Result, TraceRef
from kvcomm.runtime.run import GraphRun, RunSpec
from kvcomm.runtime.stream_events import Streamer, StreamEvent
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    CallInterrupted,
    Failed,
    NodeInfo,
    Profiled,
    RunFinished,
    RunStarted,
    StateRead,
    Totals,
)
from kvcomm.trace.record import Recorder
from kvcomm.version import VERSION


@dataclass(frozen=True)
class RunRequest:
    """One run as it is asked for. `now` is the day that its prompts show.

    `policies` are those of single nodes, in place of the session's. `learned` is what was read
    of earlier sessions. `unmeasured`: the model's priors are not known yet. `automatic`: its run
    folder was chosen by the session. It waited `queued_s` for others.
    """

    graph: AgentGraph
    inputs: Mapping[str, str]
    seed: int
    now: datetime
    policies: Mapping[str, Policy] = field(default_factory=dict)
    learned: StateRead | None = None
    unmeasured: bool = False
    automatic: bool = True
    queued_s: float = 0.0


@dataclass(frozen=True)
class Executor:
    """Executes runs on an engine, in one mode; `audits` are made behind them."""

    engine: Engine
    mode: str
    policy: Policy
    namespace: str
    auto: Auto | None = None
    audits: AuditQueue | None = None

    def prepare(
        self, request: RunRequest, put: Callable[[StreamEvent], None] | None
    ) -> tuple[GraphRun, list[Streamer]]:
        """The run, checked before anything is written, and who streams it. Raises `UsageError`."""
        nodes = request.graph.nodes.values()
        tools = [node.name for node in nodes if isinstance(node.agent, Tool)]
        streamers = [Streamer(self.engine.codec, tools, put)] if put else []
        spec = RunSpec(
            request.graph,
            self.policy,
            request.inputs,
            request.seed,
            self.namespace,
            None if request.policies else self.auto,
            request.policies,
            codec=self.engine.codec.at(request.now),
        )
        on_token = streamers[0].token if streamers else None
        return GraphRun(self.engine, spec, on_token), streamers

    async def execute(
        self,
        run: GraphRun,
        request: RunRequest,
        recorder: Recorder,
        deadline: Deadline,
    ) -> Result:
        """Run a graph; everything that happens is written by `recorder`."""
        auto = run.spec.auto
        audited: list[Audited] = []

        def answered(call: Answered) -> None:
            choice = call.choice
            if self.audits is None or choice is None:
                return
            if choice.measured or call.unread:
                recorder.hold()
                self.audits.add(Audit(call, choice, recorder, audited))

        run.on_answered = answered
        began = time.perf_counter()
        recorder.write(RunStarted, **self._header(request))
        if request.learned:
            recorder.write(StateRead, **request.learned.model_dump(exclude={"kind", "v", "t"}))
        if auto and auto.priors:
            recorder.write(Profiled, priors=dict(auto.priors))
        status: Literal["ok", "failed", "interrupted"] = "failed"
        answer: str | None = None
        try:
            async with deadline.within():
                await run.run(recorder)
            answer = run.answer.strip()
            status = "ok"
        except asyncio.CancelledError:
            status = "interrupted"
            raise
        except BaseException as error:
            recorder.write(Failed, node=None, error=str(error) or type(error).__name__)
            raise
        finally:
            ended = run.answered_at if status == "ok" else 0.0
            wall_s = (ended or time.perf_counter()) - began
            cut: list[Interrupted] = [] if status == "ok" else run.context.interrupted
            totals = _totals(run.calls, cut, wall_s, request.queued_s)
            recorder.write(
                RunFinished, status=status, answer=answer, totals=totals, calls=len(run.calls)
            )
            recorder.release()
            if self.audits is not None:
                self.audits.start()
        warnings = [*run.warnings, *recorder.warnings]
        if request.unmeasured:
            warnings.append(
                f"exact, because it is not measured yet how well {self.engine.model} can reuse KV: "
                "that goes on behind the answers, once (`warm_up` does it now)"
            )
        return Result(
            answer,
            self.engine.model,
            self.mode,
            run.calls,
            audited,
            totals,
            TraceRef(recorder.path),
            tuple(warnings),
            run.said,
            run.tools,
        )

    def _header(self, request: RunRequest) -> dict[str, object]:
        graph = request.graph
        return {
            "kvcomm": VERSION,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": self.engine.model,
            "device": self.engine.device,
            "dtype": self.engine.dtype,
            "mode": self.mode,
            "seed": request.seed,
            "graph": graph.name,
            "answer_node": graph.answer,
            "now": request.now,
            "automatic": request.automatic,
            "inputs": dict(request.inputs),
            "nodes": [
                NodeInfo(
                    name=node.name,
                    agent=node.agent.name,
                    round=node.round,
                    senders=node.hears,
                    exact=node.agent.exact,
                    tool=isinstance(node.agent, Tool),
                )
                for node in graph.nodes.values()
            ],
        }


def zero_totals(queued_s: float) -> Totals:
    """Those of a run of which nothing is known but how long it waited."""
    return _totals([], [], 0.0, queued_s)


def _totals(
    calls: Sequence[Call],
    interrupted: Sequence[Interrupted],
    wall_s: float,
    queued_s: float,
) -> Totals:
    reports: list[CallFinished | CallInterrupted] = [call.report for call in calls]
    reports += [report for report, _ in interrupted]
    steps = [*(call.steps for call in calls), *(steps for _, steps in interrupted)]
    prompt = sum(report.prompt_tokens for report in reports)
    asked = sum(call.report.query_tokens for call in calls)
    computed = asked + sum(step.computed for segments in steps for step in segments)
    return Totals(
        prompt_tokens=prompt,
        computed_tokens=computed,
        reused_tokens=prompt - computed,
        output_tokens=sum(report.output_tokens for report in reports),
        extra={
            "base": sum(call.report.base_tokens for call in calls),
            "query": asked,  # computed first to see what prompts attend to; they count above, too
            "audit": 0,  # behind the answer: its events say
            "redone": sum(report.redone_tokens for report in reports),
        },
        wall_s=wall_s,
        queued_s=queued_s,
    )
