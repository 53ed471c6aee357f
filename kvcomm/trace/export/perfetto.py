"""Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open: a thread a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvcomm.trace.events import CallFinished
from kvcomm.trace.read import CallView, TraceRun

Slice = dict[str, Any]
PID = 1
# A flow leaves from inside its slice: one that leaves at the very end is bound to none.
INSIDE_US = 0.001


def write_perfetto(run: TraceRun, path: Path) -> None:
    """Write `run` as one JSON object; times are microseconds since the run began."""
    value = {"displayTimeUnit": "ms", "otherData": _facts(run), "traceEvents": list(_events(run))}
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _events(run: TraceRun) -> Iterator[Slice]:
    threads = _threads(run)
    yield _named("process_name", 0, f"{run.started.graph} ({run.started.mode})")
    yield _named("thread_name", 0, "run")
    for name, tid in threads.items():
        yield _named("thread_name", tid, name)
        yield {**_named("thread_sort_index", tid, ""), "args": {"sort_index": tid}}
    for view in run.calls:
        yield from _call(view, threads[view.node])
    for tool in run.tools:
        args = {"tokens": tool.tokens, "cut": tool.cut}
        yield _slice("tool", threads[tool.node], tool.ready_at, tool.finished_at, args)
    yield from _instants(run, threads)
    yield from _flows(run, threads)


def _threads(run: TraceRun) -> dict[str, int]:
    """A thread a node, in the graph's order; nodes the header lacks come last."""
    names = [info.name for info in run.started.nodes]
    names += [view.node for view in run.calls]
    names += [tool.node for tool in run.tools]
    names += [retry.node for retry in run.retries]
    names += [event.node for event in run.errors if event.node is not None]
    return {name: tid for tid, name in enumerate(dict.fromkeys(names), 1)}


def _call(view: CallView, tid: int) -> Iterator[Slice]:
    call, moments = view.call or view.interrupted, view.moments
    if call is None or moments is None:
        return
    opened, ahead_from, ready, first, finished = moments
    args = {
        "agent": call.agent,
        "attempt": call.attempt,
        "gate": call.gate,
        "tokens": view.prompt_tokens,
        **{name: count for name, count in view.tokens.items() if name != "ahead"},
    }
    if ready > opened:
        ahead = {"tokens": view.tokens["ahead"]}
        yield _slice("waits", tid, opened, ready, args)
        if ahead_from < ready:
            yield _slice("ahead", tid, ahead_from, ready, ahead)
    if view.call or ready < finished:
        yield _slice("prefill", tid, ready, first, args)
    if view.call or first < finished:
        decoded = {"tokens": call.output_tokens, "stop": call.stop}
        yield _slice("decode", tid, first, finished, decoded)


def _instants(run: TraceRun, threads: dict[str, int]) -> Iterator[Slice]:
    for audit in run.audits():
        what = "audit" if audit.used else "probe"
        fields = audit.model_dump(exclude={"v", "t", "kind", "node"})
        yield _instant(f"{what} of {audit.level}", threads[audit.node], audit.t, fields)
    for retry in run.retries:
        fields = retry.model_dump(include={"attempt", "error", "wait_s"})
        yield _instant("retry", threads[retry.node], retry.t, fields)
    for error in run.errors:
        tid = 0 if error.node is None else threads[error.node]
        yield _instant("error", tid, error.t, {"error": error.error})


def _flows(run: TraceRun, threads: dict[str, int]) -> Iterator[Slice]:
    """An arrow a message, from its producer's last token to its consumer's first."""
    ends: dict[str, tuple[float, float]] = {
        tool.node: (tool.ready_at, tool.finished_at) for tool in run.tools
    }
    finished: dict[str, CallFinished] = {}
    for view in run.calls:
        if view.call:
            finished[view.node] = view.call
            ends[view.node] = (view.call.first_token_at, view.call.finished_at)
    number = 0
    for info in run.started.nodes:
        call = finished.get(info.name)
        for sender in info.senders if call else []:
            if call is None or sender not in ends or ends[sender][1] > call.first_token_at:
                continue
            number += 1
            begin, end = map(_us, ends[sender])
            flow = {"name": "message", "cat": "message", "id": number, "pid": PID}
            left = round(max(begin, end - INSIDE_US), 3)
            yield {**flow, "ph": "s", "tid": threads[sender], "ts": left}
            arrived = _us(call.first_token_at)
            yield {**flow, "ph": "f", "bp": "e", "tid": threads[info.name], "ts": arrived}


def _slice(name: str, tid: int, begin: float, end: float, args: dict[str, Any]) -> Slice:
    at = _us(begin)
    taken = round(max(_us(end) - at, 0.0), 3)
    return {
        "name": name,
        "cat": "kvcomm",
        "ph": "X",
        "pid": PID,
        "tid": tid,
        "ts": at,
        "dur": taken,
        "args": args,
    }


def _instant(name: str, tid: int, at: float, args: dict[str, Any]) -> Slice:
    where = {"pid": PID, "tid": tid, "ts": _us(at), "s": "t" if tid else "p"}
    return {"name": name, "cat": "kvcomm", "ph": "i", **where, "args": args}


def _named(what: str, tid: int, name: str) -> Slice:
    return {"name": what, "ph": "M", "pid": PID, "tid": tid, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _facts(run: TraceRun) -> dict[str, Any]:
    facts = run.started.model_dump(
        include={"kvcomm", "started", "model", "device", "dtype", "mode", "seed", "graph"}
    )
    return {**facts, "status": run.finished.status if run.finished else "cut off"}
