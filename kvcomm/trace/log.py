"""What a run logs: a line a call, and what went wrong on the way."""

from __future__ import annotations

import logging
from collections import Counter

from kvcomm.trace.events import CallFinished, Event, RunFinished, SegmentStep, ToolFinished
from kvcomm.trace.text import plain

log = logging.getLogger("kvcomm.run")


class RunLog:
    """A listener that writes to the logger `kvcomm.run`; `run` begins every line.

    Calls, tools and the end of a run are INFO; retries, restarts and nodes that failed are WARNING.
    It keeps nothing and spells nothing while the logger's level lies above.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._tokens: dict[tuple[str, int], Counter[str]] = {}

    def __call__(self, event: Event) -> None:
        """Log one event of the trace, if it is worth a line."""
        if event.kind == "retry":
            log.warning(
                "run=%s node=%s attempt=%d failed, tried again in %.3g s: %s",
                *(self._run, event.node, event.attempt, event.wait_s, _line(event.error)),
            )
        elif event.kind == "restart":
            self._tokens.clear()
            log.warning("run=%s %s", self._run, _line(event.error))
        elif event.kind == "error":
            who = f" node={event.node}" if event.node else ""
            log.warning("run=%s%s failed: %s", self._run, who, _line(event.said))
        elif log.isEnabledFor(logging.INFO):
            self._inform(event)

    def _inform(self, event: Event) -> None:
        if isinstance(event, SegmentStep):
            tokens = self._tokens.setdefault((event.node, event.attempt), Counter())
            for name in ("computed", "prefix", "realigned"):
                tokens[name] += getattr(event, name)
        elif isinstance(event, CallFinished):
            tokens = self._tokens.pop((event.node, event.attempt), Counter())
            log.info(
                "run=%s node=%s attempt=%d prompt=%d computed=%d prefix=%d realigned=%d "
                "ttft_s=%.3f output=%d stop=%s",
                *(self._run, event.node, event.attempt, event.prompt_tokens),
                *(tokens[name] for name in ("computed", "prefix", "realigned")),
                *(event.ttft_s, event.output_tokens, event.stop),
            )
        elif isinstance(event, ToolFinished):
            log.info(
                "run=%s node=%s attempt=%d tool tokens=%d seconds=%.3f",
                *(self._run, event.node, event.attempt, sum(event.tokens.values())),
                event.finished_at - event.ready_at,
            )
        elif isinstance(event, RunFinished):
            total = event.totals
            log.info(
                "run=%s %s calls=%d wall_s=%.3f queued_s=%.3f",
                *(self._run, event.status, event.calls or 0, total.wall_s, total.queued_s),
            )


def _line(text: str) -> str:
    """An error on one line, harmless to whoever prints the log."""
    return plain(" ".join(text.split()))
