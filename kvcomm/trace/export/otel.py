"""OpenTelemetry: a trace as one line of OTLP JSON, an `ExportTraceServiceRequest`.

The run is the root span, every attempt at a node a child. Texts of tasks and messages are left out,
as the convention asks for what may be private.
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
from kvcomm.trace.events import CallFinished, NodeStarted, ToolFinished
from kvcomm.trace.export import genai
from kvcomm.trace.read import CallView, TraceRun

Json = dict[str, Any]
TIMEOUT_S = 10.0
# Numbers of the protocol's enums.
INTERNAL, CLIENT = 1, 3
OK, ERROR = 1, 2
OWN_FIELDS = ("round", "attempt", "mode", "gate", "dense", "exact", "ttft_s", "decode_s", "ahead_s")


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
        self._began = {
            (event.node, event.attempt): event.t
            for event in run.events
            if isinstance(event, NodeStarted)
        }
        ends = [moments[-1] for view in run.calls if (moments := view.moments)]
        ends += [tool.finished_at for tool in run.tools]
        self._end = max([*ends, *(event.t for event in run.events)])

    def request(self) -> Json:
        started = self._run.started
        resource = {
            genai.SERVICE: "kvcomm",
            genai.SERVICE_VERSION: started.kvcomm,
            genai.own("device"): started.device,
            genai.own("dtype"): started.dtype,
        }
        spans = [
            self._run_span(),
            *(self._call_span(view) for view in self._run.calls),
            *(self._tool_span(tool) for tool in self._run.tools),
        ]
        scope = {"scope": {"name": "kvcomm.trace", "version": started.kvcomm}, "spans": spans}
        return {
            "resourceSpans": [
                {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}
            ]
        }

    def _run_span(self) -> Json:
        run, started = self._run, self._run.started
        status = run.finished.status if run.finished else "cut off"
        facts: Json = {
            genai.OPERATION: genai.RUN,
            genai.WORKFLOW: started.graph,
            genai.own("mode"): started.mode,
            genai.own("status"): status,
            **self._model(),
        }
        if run.finished:
            totals = run.finished.totals
            facts[genai.INPUT_TOKENS] = totals.prompt_tokens
            facts[genai.CACHED_TOKENS] = totals.reused_tokens
        events = [
            self._event("error", error.t, {"error": error.error, "node": error.node or ""})
            for error in run.errors
        ]
        span = self._span(self._root, f"{genai.RUN} {started.graph}", 0.0, self._end, facts, events)
        span["status"] = {"code": OK} if status == "ok" else {"code": ERROR, "message": status}
        return span

    def _call_span(self, view: CallView) -> Json:
        info = next((i for i in self._run.started.nodes if i.name == view.node), None)
        agent = info.agent if info else view.node
        counts = view.tokens
        facts: Json = {
            genai.OPERATION: genai.CHAT,
            genai.AGENT: agent,
            **self._model(),
            genai.INPUT_TOKENS: view.prompt_tokens,
            genai.CACHED_TOKENS: counts["prefix"] + counts["realigned"],
            genai.own("node"): view.node,
            genai.own("attempt"): view.attempt,
            **{genai.own(name): count for name, count in counts.items()},
        }
        events = self._retries(view.node, view.attempt)
        for audit in view.audits:
            fields = audit.model_dump(exclude={"v", "t", "kind", "node", "attempt"})
            events.append(self._event("audit" if audit.used else "probe", audit.t, fields))
        if view.call:
            begin, end = min(view.call.opened_at, view.call.ready_at), view.call.finished_at
            facts |= _finished(view.call)
            events.append(self._event("inputs complete", view.call.ready_at, {}))
            events.append(self._event("first token", view.call.first_token_at, {}))
        elif cut := view.interrupted:
            begin, end = cut.opened_at, cut.finished_at
            facts[genai.OUTPUT_TOKENS] = cut.output_tokens
            facts[genai.FINISH_REASONS] = [cut.stop]
        else:
            begin = self._began.get((view.node, view.attempt), self._end)
            end = self._failed_at(view)
        name = f"{genai.CHAT} {agent}"
        span_id = self._id(view.node, str(view.attempt))
        span = self._span(span_id, name, begin, end, facts, events, self._root, kind=CLIENT)
        if view.call:
            return span
        return _with_error(span, "interrupted" if view.interrupted else "did not finish")

    def _tool_span(self, tool: ToolFinished) -> Json:
        facts = {
            genai.OPERATION: genai.EXECUTE_TOOL,
            genai.TOOL: tool.node,
            genai.own("attempt"): tool.attempt,
            **{genai.own(f"tokens.{name}"): count for name, count in tool.tokens.items()},
        }
        events = self._retries(tool.node)
        span_id = self._id(tool.node, str(tool.attempt))
        name = f"{genai.EXECUTE_TOOL} {tool.node}"
        return self._span(span_id, name, tool.ready_at, tool.finished_at, facts, events, self._root)

    def _model(self) -> Json:
        model = self._run.started.model
        return {
            genai.PROVIDER: "kvcomm",
            genai.REQUEST_MODEL: model,
            genai.RESPONSE_MODEL: model,
            genai.REQUEST_SEED: self._run.started.seed,
        }

    def _retries(self, node: str, attempt: int | None = None) -> list[Json]:
        """Failed attempts of a node; a tool's are kept with the one that returned."""
        return [
            self._event("retry", event.t, {"error": event.error, "wait_s": event.wait_s})
            for event in self._run.retries
            if event.node == node and attempt in (None, event.attempt)
        ]

    def _failed_at(self, view: CallView) -> float:
        """When an attempt without a call was given up, or the trace broke off."""
        retries = [
            r.t for r in self._run.retries if (r.node, r.attempt) == (view.node, view.attempt)
        ]
        errors = [error.t for error in self._run.errors if error.node == view.node]
        return next(iter([*retries, *errors]), self._end)

    def _span(
        self,
        span_id: str,
        name: str,
        begin: float,
        end: float,
        facts: Json,
        events: list[Json],
        parent: str = "",
        *,
        kind: int = INTERNAL,
    ) -> Json:
        return {
            "traceId": self._trace,
            "spanId": span_id,
            **({"parentSpanId": parent} if parent else {}),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": self._at(begin),
            "endTimeUnixNano": self._at(max(begin, end)),
            "attributes": _attributes(facts),
            "events": sorted(events, key=lambda event: int(event["timeUnixNano"])),
            "status": {},
        }

    def _event(self, name: str, at: float, fields: Mapping[str, Any]) -> Json:
        known = {genai.own(key): value for key, value in fields.items() if value is not None}
        return {"timeUnixNano": self._at(at), "name": name, "attributes": _attributes(known)}

    def _at(self, seconds: float) -> str:
        return str(self._start + round(1e9 * seconds))

    def _id(self, *parts: str, size: int = 8) -> str:
        text = "\0".join((self._where, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[: 2 * size]


def _finished(call: CallFinished) -> Json:
    fields = {genai.own(name): getattr(call, name) for name in OWN_FIELDS}
    return {**fields, genai.OUTPUT_TOKENS: call.output_tokens, genai.FINISH_REASONS: [call.stop]}


def _with_error(span: Json, message: str) -> Json:
    error = _attributes({genai.ERROR_TYPE: "_OTHER"})
    attributes = [*span["attributes"], *error]
    return {**span, "attributes": attributes, "status": {"code": ERROR, "message": message}}


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
