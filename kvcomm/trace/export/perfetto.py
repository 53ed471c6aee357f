"""Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open: a thread a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvcomm.trace.events import Failed, Retried
from kvcomm.trace.run import CallView, TraceRun

Slice = dict[str, Any]
PID = 1
# A flow leaves from inside its slice: one that leaves at the very end is bound to none.
INSIDE_US = 0.001


def write_perfetto(run: TraceRun, path: Path) -> None:
    """Write `run` as one JSON object; times are microseconds since the run began."""
    known = {"kvcomm", "started", "model", "device", "dtype", "mode", "seed", "graph"}
    facts = {**run.started.model_dump(include=known), "status": run.status}
    value = {"displayTimeUnit": "ms", "otherData": facts, "traceEvents": list(_events(run))}
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _events(run: TraceRun) -> Iterator[Slice]:
    nodes = [info.name for info in run.started.nodes]
    # Nodes that the header lacks come last.
    others = (getattr(event, "node", None) for event in run.events)
    threads: dict[str, int] = {}
    for name in filter(None, (*nodes, *others)):
        threads.setdefault(name, len(threads) + 1)
    yield _named("process_name", 0, name=f"{run.started.graph} ({run.started.mode})")
    yield _named("thread_name", 0, name="run")
    for name, tid in threads.items():
        yield _named("thread_name", tid, name=name)
        yield _named("thread_sort_index", tid, sort_index=tid)
    for view in run.calls:
        yield from _call(view, threads[view.node])
    for tool in run.tools:
        args = {"tokens": tool.tokens, "cut": tool.cut}
        yield _slice("tool", threads[tool.node], tool.ready_at, tool.finished_at, args)
    for audit in run.audits():
        fields = audit.model_dump(exclude={"v", "t", "kind", "node"})
        yield _instant(audit.what, threads[audit.node], audit.t, fields)
    failures: list[Retried | Failed] = [*run.retries, *run.errors]
    for event in failures:
        fields = event.model_dump(include={"attempt", "error", "wait_s"})
        yield _instant(event.kind, threads[event.node] if event.node else 0, event.t, fields)
    yield from _flows(run, threads)


def _call(view: CallView, tid: int) -> Iterator[Slice]:
    call = view.ended
    if call is None:
        return
    counts = view.tokens
    ahead = {"tokens": counts.pop("ahead")}
    args = call.model_dump(include={"agent", "attempt", "gate"})
    args |= {"tokens": view.prompt_tokens, **counts}
    (waits, *_), work, prefill, decode = view.parts
    if waits < prefill[0]:
        yield _slice("waits", tid, waits, prefill[0], args)
        if work[0] < work[1]:
            yield _slice("ahead", tid, *work[:2], ahead)
    decoded = {"tokens": call.output_tokens, "stop": call.stop}
    for (begin, end, name), known in ((prefill, args), (decode, decoded)):
        if view.call or begin < call.finished_at:
            yield _slice(name, tid, begin, end, known)


def _flows(run: TraceRun, threads: dict[str, int]) -> Iterator[Slice]:
    """An arrow a message, from its producer's last token to its consumer's first."""
    finished = {call.node: call for call in run.done}
    ends = {tool.node: (tool.ready_at, tool.finished_at) for tool in run.tools}
    ends |= {node: (call.first_token_at, call.finished_at) for node, call in finished.items()}
    number = 0
    for info in run.started.nodes:
        for sender in info.senders if info.name in finished else []:
            arrived = finished[info.name].first_token_at
            if sender not in ends or ends[sender][1] > arrived:
                continue
            number += 1
            begin, end = map(_us, ends[sender])
            flow = {"name": "message", "cat": "message", "id": number, "pid": PID}
            left = round(max(begin, end - INSIDE_US), 3)
            yield {**flow, "ph": "s", "tid": threads[sender], "ts": left}
            yield {**flow, "ph": "f", "bp": "e", "tid": threads[info.name], "ts": _us(arrived)}


def _slice(name: str, tid: int, begin: float, end: float, args: dict[str, Any]) -> Slice:
    at = _us(begin)
    when = {"ts": at, "dur": round(max(_us(end) - at, 0.0), 3)}
    return {"name": name, "cat": "kvcomm", "ph": "X", "pid": PID, "tid": tid, **when, "args": args}


def _instant(name: str, tid: int, at: float, args: dict[str, Any]) -> Slice:
    where = {"pid": PID, "tid": tid, "ts": _us(at), "s": "t" if tid else "p"}
    return {"name": name, "cat": "kvcomm", "ph": "i", **where, "args": args}


def _named(what: str, tid: int, **args: Any) -> Slice:
    return {"name": what, "ph": "M", "pid": PID, "tid": tid, "args": args}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)
