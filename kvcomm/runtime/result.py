"""What a run returns, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kvcomm.trace.events import Audited, CallFinished, MessageSent, SegmentStep, Totals


class Call(BaseModel):
    """One finished call of an agent: what it read, how each segment was obtained, what it said."""

    model_config = ConfigDict(frozen=True)

    report: CallFinished
    steps: list[SegmentStep]
    message: MessageSent

    @property
    def node(self) -> str:
        """The node's name."""
        return self.report.node

    @property
    def text(self) -> str:
        """The message."""
        return self.message.text

    @property
    def ttft_s(self) -> float:
        """Seconds from the last producer's final token to this call's first."""
        return self.report.ttft_s

    def total(self, field: str) -> int:
        """Sum of `computed`, `prefix`, `realigned` or `ahead` over the segments."""
        return sum(getattr(step, field) for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """The object that `kvcomm run --json` prints for a call."""
        r = self.report
        segment_fields = ("name", "tokens", "computed", "prefix", "realigned", "ahead", "reason")
        return {
            "node": r.node,
            "agent": r.agent,
            "round": r.round,
            "prompt_tokens": r.prompt_tokens,
            "output_tokens": r.output_tokens,
            "exact": r.exact,
            "ttft_s": r.ttft_s,
            "decode_s": r.decode_s,
            "dense": r.dense,
            "gate": r.gate,
            "segments": [
                {"kind": s.segment, **{name: getattr(s, name) for name in segment_fields}}
                for s in self.steps
            ],
        }


@dataclass(frozen=True)
class TraceRef:
    """Where a run's trace lies; `path` is the run folder, None when nothing was written."""

    path: Path | None


@dataclass(frozen=True)
class Result:
    """The answer of a run, its calls in the order they finished, audits, totals and trace.

    `warnings` say what went wrong beside the answer: nodes that were skipped, a trace or state that
    could not be written.
    """

    answer: str
    model: str
    mode: str
    calls: list[Call]
    audits: list[Audited]
    totals: Totals
    trace: TraceRef
    warnings: tuple[str, ...] = ()

    def call(self, node: str) -> Call:
        """The call of `node`. Raises `KeyError` when there is none."""
        for call in self.calls:
            if call.node == node:
                return call
        raise KeyError(node)

    def to_json(self) -> dict[str, Any]:
        """The object that `kvcomm run --json` prints."""
        return {
            "answer": self.answer,
            "model": self.model,
            "mode": self.mode,
            "calls": [call.to_json() for call in self.calls],
            "audits": [a.model_dump(exclude={"kind", "v", "t", "attempt"}) for a in self.audits],
            "totals": self.totals.model_dump(),
            "trace": str(self.trace.path) if self.trace.path else None,
            "warnings": list(self.warnings),
        }
