"""What a call leaves in the trace: its segments, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from kvcomm.engine.base import EngineSequence, Token
from kvcomm.prompt import spelled
from kvcomm.runtime.account import Entry
from kvcomm.runtime.filling import Filling
from kvcomm.runtime.result import Call
from kvcomm.trace.events import CallFinished, CallInterrupted, MessageSent, SegmentStep

if TYPE_CHECKING:
    from kvcomm.runtime.node import Attempt


def finished(
    attempt: Attempt,
    seq: EngineSequence,
    filling: Filling,
    tokens: Sequence[Token],
    sent: MessageSent,
) -> Call:
    """Write the segments of a call that has answered, and the call."""
    if seq.arrived is not None:
        filling.account.restate(seq.arrived)
    clock = attempt.recorder.since_start
    ready = attempt.ready_at
    steps = _steps(attempt, filling, ready)
    report = attempt.recorder.write(
        CallFinished,
        **_common(attempt, seq, filling, tokens),
        gate=filling.gate,
        dense=filling.dense,
        exact=seq.exact,
        ready_at=clock(ready),
        first_token_at=clock(tokens[0].at),
        finished_at=clock(tokens[-1].at),
        ttft_s=tokens[0].at - ready,
        decode_s=tokens[-1].at - tokens[0].at,
        ahead_s=filling.ahead_s,
        first_token=attempt.sampled,
        stop="stop" if attempt.stopped else tokens[-1].last or "length",
        offsets=attempt.policy.offsets,
        base_tokens=filling.base_tokens,
    )
    return Call(report=report, steps=steps, message=sent)


def interrupted(attempt: Attempt, seq: EngineSequence, filling: Filling) -> None:
    """Write what is known of a call that is cancelled: its row, and its answer so far."""
    now, clock = time.perf_counter(), attempt.recorder.since_start
    ready = attempt.ready_at if all(d.sealed for d in attempt.drafts.values()) else None
    tokens = attempt.tokens
    ids = [*attempt.begins, *(token.id for token in tokens if token.last != "stop")]
    steps = _steps(attempt, filling, now if ready is None else ready)
    report = attempt.recorder.write(
        CallInterrupted,
        **_common(attempt, seq, filling, tokens),
        gate=filling.gate if filling.plans else "",
        text=attempt.engine.codec.decode(ids) if tokens else "",
        ready_at=None if ready is None else clock(ready),
        first_token_at=clock(tokens[0].at) if tokens else None,
        finished_at=clock(now),
    )
    attempt.interrupted.append((report, steps))


def _common(
    attempt: Attempt, seq: EngineSequence, filling: Filling, tokens: Sequence[Token]
) -> dict[str, object]:
    """What is known of every call, however it ended."""
    return {
        "node": attempt.node.name,
        "agent": attempt.agent.name,
        "round": attempt.node.round,
        "attempt": attempt.number,
        "mode": attempt.policy.name,
        "prompt_tokens": filling.account.tokens,
        # Without the one that stopped it.
        "output_tokens": sum(1 for token in tokens if token.last != "stop"),
        "opened_at": attempt.recorder.since_start(attempt.opened),
        "redone_tokens": filling.account.redone,
        "phases": seq.phases.seconds,
    }


def _steps(attempt: Attempt, filling: Filling, ready: float) -> list[SegmentStep]:
    return [
        attempt.recorder.write(
            SegmentStep,
            node=attempt.node.name,
            attempt=attempt.number,
            index=index,
            **{**entry.fields(ready), **_lent(attempt, entry)},
            text=_text(attempt, entry, opening=index == 0),
        )
        for index, entry in sorted(filling.account.entries.items())
    ]


def _lent(attempt: Attempt, entry: Entry) -> dict[str, str]:
    """What a step says of a loan that was used."""
    loan = attempt.borrowed.get(entry.name) if entry.realigned else None
    if loan is None:
        return {}
    reason = f"{entry.reason}; KV from the prompt of {loan.lender}"
    return {"lender": loan.lender, "reason": reason}


def _text(attempt: Attempt, entry: Entry, *, opening: bool) -> int | None:
    ids = tuple(entry.ids)
    spell = partial(spelled, attempt.engine.codec, ids, opening=opening)
    return attempt.recorder.text((ids, opening), spell)
