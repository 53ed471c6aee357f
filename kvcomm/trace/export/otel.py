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
        self._where = str(run.path.resolve())
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
        started = self._run.started
        resource = {
            "service.name": "kvcomm",
            "service.version": started.kvcomm,
            "kvcomm.device": started.device,
            "kvcomm.dtype": started.dtype,
        }
        spans = [
            self._run_span(),
            *map(self._call_span, self._run.calls),
            *map(self._tool_span, self._run.tools),
        ]
        scope = {"scope": {"name": "kvcomm.trace", "version": started.kvcomm}, "spans": spans}
        about = {"attributes": _attributes(resource)}
        return {"resourceSpans": [{"resource": about, "scopeSpans": [scope]}]}

    def _run_span(self) -> Json:
        run, graph = self._run, self._run.started.graph
        facts: Json = {
            OPERATION: "invoke_workflow",
            "gen_ai.workflow.name": graph,
            "kvcomm.mode": run.started.mode,
            "kvcomm.status": run.status,
            **self._model,
        }
        if run.finished:
            facts[INPUT_TOKENS] = run.finished.totals.prompt_tokens
            facts[CACHED_TOKENS] = run.finished.totals.reused_tokens
        events = [
            self._event("error", error.t, {"error": error.error, "node": error.node or ""})
            for error in run.errors
        ]
        name = f"invoke_workflow {graph}"
        span = self._span(self._root, name, (0.0, self._end), facts, events, parent="")
        bad = {"code": ERROR, "message": run.status}
        return {**span, "status": {"code": OK} if run.status == "ok" else bad}

    def _call_span(self, view: CallView) -> Json:
        agent, counts = self._run.info(view.node).agent, view.tokens
        facts: Json = {
            OPERATION: "chat",
            "gen_ai.agent.name": agent,
            **self._model,
            INPUT_TOKENS: view.prompt_tokens,
            CACHED_TOKENS: counts["prefix"] + counts["realigned"],
            "kvcomm.node": view.node,
            "kvcomm.attempt": view.attempt,
            **_own(counts),
        }
        events = self._retries(view.node, view.attempt)
        for audit in view.audits:
            fields = audit.model_dump(exclude={"v", "t", "kind", "node", "attempt"})
            events.append(self._event("audit" if audit.used else "probe", audit.t, fields))
        if call := view.call:
            times = min(call.opened_at, call.ready_at), call.finished_at
            facts |= _own({name: getattr(call, name) for name in OWN_FIELDS})
            events.append(self._event("inputs complete", call.ready_at, {}))
            events.append(self._event("first token", call.first_token_at, {}))
        elif cut := view.interrupted:
            times = cut.opened_at, cut.finished_at
        else:
            times = self._began.get((view.node, view.attempt), self._end), self._failed_at(view)
        if ended := view.call or view.interrupted:
            facts["gen_ai.usage.output_tokens"] = ended.output_tokens
            facts["gen_ai.response.finish_reasons"] = [ended.stop]
        if not view.call:
            facts["error.type"] = "_OTHER"
        span_id = self._id(view.node, str(view.attempt))
        span = self._span(span_id, f"chat {agent}", times, facts, events, kind=CLIENT)
        return span if view.call else {**span, "status": {"code": ERROR, "message": view.how}}

    def _tool_span(self, tool: ToolFinished) -> Json:
        facts = {
            OPERATION: "execute_tool",
            "gen_ai.tool.name": tool.node,
            "kvcomm.attempt": tool.attempt,
            **_own({f"tokens.{name}": count for name, count in tool.tokens.items()}),
        }
        span_id, times = self._id(tool.node, str(tool.attempt)), (tool.ready_at, tool.finished_at)
        # Failed attempts of a tool are kept with the one that returned.
        retries = self._retries(tool.node)
        return self._span(span_id, f"execute_tool {tool.node}", times, facts, retries)

    def _retries(self, node: str, attempt: int | None = None) -> list[Json]:
        return [
            self._event("retry", event.t, {"error": event.error, "wait_s": event.wait_s})
            for event in self._run.retries_of(node, attempt)
        ]

    def _failed_at(self, view: CallView) -> float:
        """When an attempt without a call was given up, or the trace broke off."""
        retries = [event.t for event in self._run.retries_of(view.node, view.attempt)]
        errors = [error.t for error in self._run.errors if error.node == view.node]
        return next(iter([*retries, *errors]), self._end)

    def _span(
        self,
        span_id: str,
        name: str,
        times: tuple[float, float],
        facts: Json,
        events: list[Json],
        *,
        parent: str | None = None,
        kind: int = INTERNAL,
    ) -> Json:
        """One span; without a `parent` of its own it is a child of the run's."""
        begin, end = times
        above = self._root if parent is None else parent
        return {
            "traceId": self._trace,
            "spanId": span_id,
            **({"parentSpanId": above} if above else {}),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": self._at(begin),
            "endTimeUnixNano": self._at(max(begin, end)),
            "attributes": _attributes(facts),
            "events": sorted(events, key=lambda event: int(event["timeUnixNano"])),
            "status": {},
        }

    def _event(self, name: str, at: float, fields: Mapping[str, Any]) -> Json:
        known = _own({key: value for key, value in fields.items() if value is not None})
        return {"timeUnixNano": self._at(at), "name": name, "attributes": _attributes(known)}

    def _at(self, seconds: float) -> str:
        return str(self._start + round(1e9 * seconds))

    def _id(self, *parts: str, size: int = 8) -> str:
        text = "\0".join((self._where, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[: 2 * size]


def _own(values: Mapping[str, Any]) -> Json:
    """Attributes that only kvcomm has."""
    return {f"kvcomm.{name}": value for name, value in values.items()}


def _attributes(values: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> Json:
    """An `AnyValue`; 64-bit integers are strings in the JSON of protocol buffers."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}


def _nanoseconds(started: str) -> int:
    """An ISO time in nanoseconds since 1970; one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        raise TraceError(f"the trace began at {started!r}, which is no ISO time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + 1000 * moment.microsecond
