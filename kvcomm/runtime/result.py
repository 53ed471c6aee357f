"""What a run returns, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kvcomm.runtime.notebook import SHOWN, result_html
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    MessageSent,
    SegmentStep,
    ToolFinished,
    Totals,
)
from kvcomm.trace.text import shorten

CALL_FIELDS = (
    *("node", "agent", "round", "stop", "prompt_tokens", "output_tokens"),
    *("exact", "ttft_s", "decode_s", "dense", "gate"),
)
SEGMENT_FIELDS = ("name", "tokens", "computed", "prefix", "realigned", "ahead", "reason")
# What says where an event stands in a trace, and nothing of what happened.
PLACE = {"kind", "v", "t", "attempt"}


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
    def stop(self) -> Literal["stop", "length"]:
        """Why the answer ended: at a stop token or text, or at `max_tokens`."""
        return self.report.stop

    @property
    def ttft_s(self) -> float:
        """Seconds from the last producer's final token to this call's first."""
        return self.report.ttft_s

    def total(self, field: str) -> int:
        """Sum of `computed`, `prefix`, `realigned` or `ahead` over the segments."""
        return sum(getattr(step, field) for step in self.steps)

    def usage(self) -> dict[str, Any]:
        """Tokens in the names of OpenAI's API; cached ones were found in a prefix or realigned."""
        prompt = self.report.prompt_tokens
        return usage(prompt, self.report.output_tokens, prompt - self.total("computed"))

    def to_json(self) -> dict[str, Any]:
        """The object that `kvcomm run --json` prints for a call."""
        return {
            **{name: getattr(self.report, name) for name in CALL_FIELDS},
            "text": self.text,
            "usage": self.usage(),
            "segments": [
                {"kind": s.segment, **{name: getattr(s, name) for name in SEGMENT_FIELDS}}
                for s in self.steps
            ],
        }

    def __repr__(self) -> str:
        r = self.report
        how = f"{self.total('prefix')} prefix, {self.total('realigned')} realigned"
        return (
            f"<Call {r.node}: {r.prompt_tokens} prompt tokens ({how}), "
            f"{r.output_tokens} output, {shorten(self.text, SHOWN)!r}>"
        )

    def __str__(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class TraceRef:
    """Where a run's trace lies; `path` is the run folder, None when nothing was written."""

    path: Path | None


@dataclass(frozen=True, repr=False)
class Result:
    """The answer of a run, its calls in the order they finished, audits, totals and trace.

    `warnings` say what went wrong beside the answer: nodes that were skipped, a trace or state that
    could not be written. `said` holds the token ids of the inputs that were read, and of all
    messages and tools' texts, by name. `tools` are the tools in the order they returned.
    """

    answer: str
    model: str
    mode: str
    calls: list[Call]
    audits: list[Audited]
    totals: Totals
    trace: TraceRef
    warnings: tuple[str, ...] = ()
    said: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tools: list[ToolFinished] = field(default_factory=list)

    def call(self, node: str) -> Call:
        """The call of `node`. Raises `KeyError` when there is none."""
        for call in self.calls:
            if call.node == node:
                return call
        raise KeyError(node)

    def usage(self) -> dict[str, Any]:
        """Tokens of all calls in the names of OpenAI's API; see `Call.usage`."""
        totals = self.totals
        return usage(totals.prompt_tokens, totals.output_tokens, totals.reused_tokens)

    def to_json(self) -> dict[str, Any]:
        """The object that `kvcomm run --json` prints: plain values, as `json.dumps` takes them."""
        return {
            "answer": self.answer,
            "model": self.model,
            "mode": self.mode,
            "calls": [call.to_json() for call in self.calls],
            "tools": [tool.model_dump(exclude=PLACE) for tool in self.tools],
            "audits": [audit.model_dump(exclude=PLACE) for audit in self.audits],
            "totals": self.totals.model_dump(),
            "usage": self.usage(),
            "trace": str(self.trace.path) if self.trace.path else None,
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        t = self.totals
        return (
            f"<Result {shorten(self.answer, SHOWN)!r}: {len(self.calls)} calls on {self.model} in "
            f"mode {self.mode}, {t.reused_tokens} of {t.prompt_tokens} prompt tokens reused, "
            f"{t.output_tokens} output, {t.wall_s:.1f} s>"
        )

    def _repr_html_(self) -> str:
        return result_html(self)


def usage(prompt: int, output: int, cached: int) -> dict[str, Any]:
    """Numbers of tokens in the names of OpenAI's API."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
