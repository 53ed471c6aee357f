"""OpenTelemetry: a trace as one line of OTLP JSON, an `ExportTraceServiceRequest`.

The run is the root span, every attempt at a node a child. Texts of tasks and messages are left out,
as the convention asks for what may be private. Names that begin with `gen_ai` are OpenTelemetry's,
in development: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from kvcomm.errors import TraceError, UsageError
from kvcomm.trace.events import NodeStarted, ToolFinished
from kvcomm.trace.run import CallView, TraceRun

Json = dict[str, Any]
TIMEOUT_S = 10.0
# Numbers of the protocol's enums.
INTERNAL, CLIENT = 1, 3
OK, ERROR = 1, 2
OWN_FIELDS = ("round", "attempt", "mode", "gate", "dense", "exact", "ttft_s", "decode_s", "ahead_s")
OPERATION = "gen_ai.operation.name"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
# Part of the input tokens: those whose KV was not computed.
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"


def write_otel(run: TraceRun, path: Path) -> None:
    """Write `run` for a collector's file receiver. Raises `TraceError` for an unreadable start."""
    path.write_text(json.dumps(_Spans(run).request(), ensure_ascii=False) + "\n", encoding="utf-8")


def send_otel(run: TraceRun, endpoint: str) -> None:
    """Send `run` to a collector by OTLP over HTTP, at `ENDPOINT/v1/traces`.

    Raises `UsageError` when the collector cannot be reached or refuses the spans.
    """
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"endpoint {endpoint!r} is no address: write http://HOST:4318")
    body = json.dumps(_Spans(run).request()).encode()
    request = Request(url, body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=TIMEOUT_S):
            pass
    except OSError as error:
        raise UsageError(f"{url} did not take the spans: {error}") from None


class _Spans:
    """The spans of one run; ids depend on where the trace is, and so stay the same."""

    def __init__(self, run: TraceRun) -> None:
        self._run = run
        self._start = _nanoseconds(run.started.started)
        self._trace = self._id("trace", size=16)
        self._root = self._id("run")
        self._model = {
            "gen_ai.provider.name": "kvcomm",
            **dict.fromkeys(("gen_ai.request.model", "gen_ai.response.model"), run.started.model),
            "gen_ai.request.seed": run.started.seed,
        }
        self._began = {(event.node, event.attempt): event.t for event in run.of(NodeStarted)}
        ends = [bar.parts[-1][1] for bar in run.bars]
        self._end = max([*ends, *(event.t for event in run.events)])

    def request(self) -> Json:
        """All spans, as a collector takes them."""
        run, started = self._run, self._run.started
        about = {"service.name": "kvcomm", "service.version": started.kvcomm}
        about |= _own({"device": started.device, "dtype": started.dtype})
        calls, tools = map(self._call_span, run.calls), map(self._tool_span, run.tools)
        spans = [self._run_span(), *calls, *tools]
        scope = {"scope": {"name": "kvcomm.trace", "version": started.kvcomm}, "spans": spans}
        resource = {"attributes": _attributes(about)}
        return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}

    def _run_span(self) -> Json:
        run, graph = self._run, self._run.started.graph
        facts: Json = {
            OPERATION: "invoke_workflow",
            "gen_ai.workflow.name": graph,
            **_own({"mode": run.started.mode, "status": run.status}),
            **self._model,
        }
        if run.finished:
            facts[INPUT_TOKENS] = run.finished.totals.prompt_tokens
            facts[CACHED_TOKENS] = run.finished.totals.reused_tokens
        events = [
            self._event("error", error.t, {"error": error.error, "node": error.node or ""})
            for error in run.errors
        ]
        status = {"code": OK} if run.status == "ok" else {"code": ERROR, "message": run.status}
        name, times, ids = f"invoke_workflow {graph}", (0.0, self._end), {"spanId": self._root}
        span = self._span(name, ids, times, facts, events)
        return {**span, "kind": INTERNAL, "status": status}

    def _call_span(self, view: CallView) -> Json:
        agent, counts, ended = self._run.info(view.node).agent, view.tokens, view.ended
        facts: Json = {
            OPERATION: "chat",
            "gen_ai.agent.name": agent,
            **self._model,
            INPUT_TOKENS: view.prompt_tokens,
            CACHED_TOKENS: counts["prefix"] + counts["realigned"],
            **_own({"node": view.node, "attempt": view.attempt, **counts}),
        }
        events = self._retries(view.node, view.attempt)
        for audit in view.audits:
            fields = audit.model_dump(exclude={"v", "t", "kind", "node", "attempt"})
            events.append(self._event("audit" if audit.used else "probe", audit.t, fields))
        times = self._began.get((view.node, view.attempt), self._end), self._failed_at(view)
        if ended:
            times = ended.opened_at, ended.finished_at
            facts["gen_ai.usage.output_tokens"] = ended.output_tokens
            facts["gen_ai.response.finish_reasons"] = [ended.stop]
        if call := view.call:
            times = min(call.opened_at, call.ready_at), call.finished_at
            facts |= _own({name: getattr(call, name) for name in OWN_FIELDS})
            events.append(self._event("inputs complete", call.ready_at, {}))
            events.append(self._event("first token", call.first_token_at, {}))
        else:
            facts["error.type"] = "_OTHER"
        ids = self._child(view.node, view.attempt)
        span = self._span(f"chat {agent}", ids, times, facts, events)
        status = {} if view.call else {"code": ERROR, "message": view.how}
        return {**span, "kind": CLIENT, "status": status}

    def _tool_span(self, tool: ToolFinished) -> Json:
        tokens = {f"tokens.{name}": count for name, count in tool.tokens.items()}
        facts = {
            OPERATION: "execute_tool",
            "gen_ai.tool.name": tool.node,
            **_own({"attempt": tool.attempt, **tokens}),
        }
        ids, times = self._child(tool.node, tool.attempt), (tool.ready_at, tool.finished_at)
        # Failed attempts of a tool are kept with the one that returned.
        retries = self._retries(tool.node)
        span = self._span(f"execute_tool {tool.node}", ids, times, facts, retries)
        return {**span, "kind": INTERNAL, "status": {}}

    def _retries(self, node: str, attempt: int | None = None) -> list[Json]:
        return [
            self._event("retry", event.t, {"error": event.error, "wait_s": event.wait_s})
            for event in self._run.retries_of(node, attempt)
        ]

    def _failed_at(self, view: CallView) -> float:
        """When an attempt without a call was given up, or the trace broke off."""
        retries = self._run.retries_of(view.node, view.attempt)
        errors = [error for error in self._run.errors if error.node == view.node]
        return next((event.t for event in (*retries, *errors)), self._end)

    def _span(
        self, name: str, ids: Json, times: tuple[float, float], facts: Json, events: list[Json]
    ) -> Json:
        begin, end = times
        return {
            "traceId": self._trace,
            **ids,
            "name": name,
            "startTimeUnixNano": self._at(begin),
            "endTimeUnixNano": self._at(max(begin, end)),
            "attributes": _attributes(facts),
            "events": sorted(events, key=lambda event: int(event["timeUnixNano"])),
        }

    def _child(self, node: str, attempt: int) -> Json:
        """The ids of an attempt, a child of the run."""
        return {"spanId": self._id(node, str(attempt)), "parentSpanId": self._root}

    def _event(self, name: str, at: float, fields: Mapping[str, Any]) -> Json:
        known = _own({key: value for key, value in fields.items() if value is not None})
        return {"timeUnixNano": self._at(at), "name": name, "attributes": _attributes(known)}

    def _at(self, seconds: float) -> str:
        return str(self._start + round(1e9 * seconds))

    def _id(self, *parts: str, size: int = 8) -> str:
        text = "\0".join((str(self._run.path.resolve()), *parts))
        return hashlib.sha256(text.encode()).hexdigest()[: 2 * size]


def _own(values: Mapping[str, Any]) -> Json:
    """Attributes that only kvcomm has."""
    return {f"kvcomm.{name}": value for name, value in values.items()}


def _attributes(values: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> Json:
    """An `AnyValue`; 64-bit integers are strings in the JSON of protocol buffers."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    if isinstance(value, bool | float):
        return {"boolValue" if isinstance(value, bool) else "doubleValue": value}
    return {"intValue" if isinstance(value, int) else "stringValue": str(value)}


def _nanoseconds(started: str) -> int:
    """An ISO time in nanoseconds since 1970; one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        raise TraceError(f"the trace began at {started!r}, which is no ISO time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + 1000 * moment.microsecond
