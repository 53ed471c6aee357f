"""What a call leaves in the trace: its segments, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from kvcomm.engine.base import EngineSequence, Token
from kvcomm.engine.usage import SegmentUsage
from kvcomm.graphs import Node
from kvcomm.prompt import Codec, spelled
from kvcomm.reuse.policy import Policy
from kvcomm.runtime.filling import Filling
from kvcomm.runtime.result import Call
from kvcomm.trace.events import CallFinished, CallInterrupted, MessageSent, SegmentStep
from kvcomm.trace.record import Recorder

Interrupted = tuple[CallInterrupted, list[SegmentStep]]


@dataclass
class Report:
    """What is known of one attempt at a node, as it goes on.

    `opened` and `ready` are clocks: when its prompt began, and when its inputs were complete (None:
    not yet). `begins` are the ids that its message begins with, `sampled` is the first token that
    was drawn. `written`: it is in the trace.
    """

    recorder: Recorder
    codec: Codec
    node: Node
    attempt: int
    opened: float = 0.0
    ready: float | None = None
    begins: tuple[int, ...] = ()
    tokens: list[Token] = field(default_factory=list)
    sampled: int | None = None
    stopped: bool = False
    written: bool = False

    def finished(
        self, seq: EngineSequence, filling: Filling, tokens: Sequence[Token], sent: MessageSent
    ) -> Call:
        """Write the segments of a call that has answered, and the call."""
        self.written = True
        if seq.arrivals is not None:
            filling.usage.restate(*seq.arrivals)
        clock = self.recorder.since_start
        ready = self.opened if self.ready is None else self.ready
        steps = self._segments(filling, ready)
        report = self.recorder.write(
            CallFinished,
            **self._common(seq, filling, filling.policy, tokens),
            gate=filling.decision,
            dense=filling.dense,
            exact=seq.exact,
            ready_at=clock(ready),
            first_token_at=clock(tokens[0].at),
            finished_at=clock(tokens[-1].at),
            ttft_s=tokens[0].at - ready,
            decode_s=tokens[-1].at - tokens[0].at,
            ahead_s=filling.ahead_s,
            first_token=self.sampled,
            stop="stop" if self.stopped else tokens[-1].last or "length",
            offsets=filling.policy.options.offsets,
            base_tokens=filling.base_tokens,
            query_tokens=filling.query_tokens,
        )
        return Call(report=report, steps=steps, message=sent)

    def interrupted(self, seq: EngineSequence, filling: Filling) -> Interrupted:
        """Write what is known of a call that is cancelled: its prompt, and its answer so far."""
        self.written = True
        now, clock = time.perf_counter(), self.recorder.since_start
        tokens = self.tokens
        ids = [*self.begins, *(token.id for token in tokens if token.last != "stop")]
        steps = self._segments(filling, now if self.ready is None else self.ready)
        report = self.recorder.write(
            CallInterrupted,
            **self._common(seq, filling, filling.policy, tokens),
            gate=filling.decision if filling.done else "",
            text=self.codec.decode(ids) if tokens else "",
            ready_at=None if self.ready is None else clock(self.ready),
            first_token_at=clock(tokens[0].at) if tokens else None,
            finished_at=clock(now),
        )
        return report, steps

    def _common(
        self, seq: EngineSequence, filling: Filling, policy: Policy, tokens: Sequence[Token]
    ) -> dict[str, object]:
        """What is known of every call, however it ended."""
        return {
            "node": self.node.name,
            "agent": self.node.agent.name,
            "round": self.node.round,
            "attempt": self.attempt,
            "mode": policy.name,
            "prompt_tokens": filling.usage.tokens,
            # Without the one that stopped it.
            "output_tokens": sum(1 for token in tokens if token.last != "stop"),
            "opened_at": self.recorder.since_start(self.opened),
            "redone_tokens": filling.usage.wasted,
            "phases": dict(seq.phases.seconds),
        }

    def _segments(self, filling: Filling, ready: float) -> list[SegmentStep]:
        return [
            self.recorder.write(
                SegmentStep,
                node=self.node.name,
                attempt=self.attempt,
                **usage.fields(ready),
                text=self._text(usage),
            )
            for usage in filling.usage.segments
        ]

    def _text(self, usage: SegmentUsage) -> int | None:
        opening = usage.index == 0
        spell = partial(spelled, self.codec, usage.ids, opening=opening)
        return self.recorder.text((usage.ids, opening), spell)
