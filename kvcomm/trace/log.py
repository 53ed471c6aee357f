"""A trace event as one line: for a reader while a run goes on, and for the logger `kvcomm.run`."""

from __future__ import annotations

import logging
from collections import Counter

from kvcomm.trace.events import Event
from kvcomm.trace.run import SOURCES
from kvcomm.trace.text import plain, plural, seconds, share, shorten

log = logging.getLogger("kvcomm.run")


def told(event: Event) -> str | None:
    """What an event says of its node, to be read behind the node's name."""
    if event.kind == "node":
        return "begins" + (f" again (#{event.attempt})" if event.attempt > 1 else "")
    if event.kind == "message":
        return f"says: {shorten(event.text, 100)}"
    if event.kind == "call":
        wrote = f"{plural(event.output_tokens, 'token')} in {seconds(event.decode_s)}"
        return f"done: {wrote}, the first after {seconds(event.ttft_s)}"
    if event.kind == "interrupted":
        wrote = plural(event.output_tokens, "token")
        return f"interrupted, {wrote} written: {shorten(event.text, 100)}"
    if event.kind == "tool":
        took = seconds(event.finished_at - event.ready_at)
        return f"found {plural(len(event.texts), 'text')} in {took}"
    if event.kind == "retry":
        return f"failed: {shorten(event.error, 100)}; tries again in {seconds(event.wait_s)}"
    return f"failed: {shorten(event.said, 160)}" if event.kind == "error" else None


def event_line(event: Event) -> str | None:
    """What happened, in words; None for events that say nothing by themselves."""
    if event.kind == "run":
        return f"{event.graph} on {event.model}, {event.mode}: {plural(len(event.nodes), 'node')}"
    if event.kind == "state":
        return f"state: {plain(event.reason)}"
    if event.kind == "audit":
        found = "failed" if event.error else f"{event.tokens:,} tokens"
        if event.divergence is not None:
            found = f"divergence {event.divergence:.4f}"
        return f"{event.node}, {event.what}: {found}"
    if event.kind == "end":
        total = event.totals
        reused = share(total.reused_tokens, total.prompt_tokens)
        return f"{event.status} in {seconds(total.wall_s)}, {reused} of the prompt tokens reused"
    if (words := told(event)) is None:
        return None
    gate = f"; {plain(event.gate)}" if event.kind == "call" else ""
    return f"{getattr(event, 'node', None) or 'the run'} {words}{gate}"


class RunLog:
    """A listener that writes to the logger `kvcomm.run`; `run` begins every line.

    Calls, tools and the end of a run are INFO; retries, restarts and nodes that failed are WARNING.
    It keeps nothing and spells nothing while the logger's level lies above.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._tokens: dict[tuple[str, int], Counter[str]] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "retry":
            where = f"node={event.node} attempt={event.attempt} failed, tried again"
            self._warn(f"{where} in {event.wait_s:.3g} s: {event.error}")
        elif event.kind == "restart":
            self._tokens.clear()
            self._warn(event.error)
        elif event.kind == "error":
            who = f"node={event.node} " if event.node else ""
            self._warn(f"{who}failed: {event.said}")
        elif log.isEnabledFor(logging.INFO):
            self._inform(event)

    def _warn(self, text: str) -> None:
        """An error on one line, harmless to whoever prints the log."""
        log.warning("run=%s %s", self._run, plain(" ".join(text.split())))

    def _inform(self, event: Event) -> None:
        if event.kind == "step":
            tokens = self._tokens.setdefault((event.node, event.attempt), Counter())
            tokens.update({name: getattr(event, name) for name in SOURCES})
        elif event.kind == "call":
            tokens = self._tokens.pop((event.node, event.attempt), Counter())
            log.info(
                "run=%s node=%s attempt=%d prompt=%d computed=%d prefix=%d realigned=%d "
                "ttft_s=%.3f output=%d stop=%s",
                *(self._run, event.node, event.attempt, event.prompt_tokens),
                *(tokens[name] for name in SOURCES),
                *(event.ttft_s, event.output_tokens, event.stop),
            )
        elif event.kind == "tool":
            log.info(
                "run=%s node=%s attempt=%d tool tokens=%d seconds=%.3f",
                *(self._run, event.node, event.attempt, sum(event.tokens.values())),
                event.finished_at - event.ready_at,
            )
        elif event.kind == "end":
            total = event.totals
            log.info(
                "run=%s %s calls=%d wall_s=%.3f queued_s=%.3f",
                *(self._run, event.status, event.calls or 0, total.wall_s, total.queued_s),
            )
