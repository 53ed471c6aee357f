"""A trace event as one line, for a run that is watched while it goes on."""

from __future__ import annotations

from kvcomm.trace.events import Event
from kvcomm.trace.text import plain, plural, seconds, share, shorten


def event_line(event: Event) -> str | None:
    """What happened, in words; None for events that say nothing by themselves."""
    if event.kind == "run":
        return f"{event.graph} on {event.model}, {event.mode}: {plural(len(event.nodes), 'node')}"
    if event.kind == "state":
        return f"state: {plain(event.reason)}"
    if event.kind == "node":
        return f"{event.node} begins" + (f" again (#{event.attempt})" if event.attempt > 1 else "")
    if event.kind == "message":
        return f"{event.node} says: {shorten(event.text, 100)}"
    if event.kind == "call":
        return (
            f"{event.node} done: {plural(event.output_tokens, 'token')} in "
            f"{seconds(event.decode_s)}, the first after {seconds(event.ttft_s)}; "
            f"{plain(event.gate)}"
        )
    if event.kind == "interrupted":
        wrote = plural(event.output_tokens, "token")
        return f"{event.node} interrupted, {wrote} written: {shorten(event.text, 100)}"
    if event.kind == "tool":
        took = seconds(event.finished_at - event.ready_at)
        return f"{event.node} found {plural(len(event.texts), 'text')} in {took}"
    if event.kind == "audit":
        found = "failed" if event.divergence is None else f"divergence {event.divergence:.4f}"
        return f"{event.node}, {event.what}: {found}"
    if event.kind == "retry":
        again = f"tries again in {seconds(event.wait_s)}"
        return f"{event.node} failed: {shorten(event.error, 100)}; {again}"
    if event.kind == "error":
        return f"{event.node or 'the run'} failed: {shorten(event.said, 160)}"
    if event.kind == "end":
        total = event.totals
        reused = share(total.reused_tokens, total.prompt_tokens)
        return f"{event.status} in {seconds(total.wall_s)}, {reused} of the prompt tokens reused"
    return None
