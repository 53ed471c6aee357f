"""What an estimate stands on: taken from the trace, derived, left out."""

from __future__ import annotations

from collections.abc import Sequence

from kvcomm.plan.simulate import Fleet
from kvcomm.plan.workload import LEARNING, Work


def notes(work: Work, modes: Sequence[str], fleet: Fleet, model: str) -> list[str]:
    """Sentences for a reader, the most important first."""
    hardware = fleet.hardware
    found = [
        "from the trace: lengths of prompts and answers, who hears whom, what tools took",
    ]
    if hardware.source == "calculated":
        found.append(
            "calculated: the hardware's speed, from peak figures of which half is reached; "
            "nothing was measured"
        )
    if hardware.model and hardware.model != model:
        found.append(f"the hardware was described for {hardware.model}, the trace is of {model}")
    own = [mode for mode in modes if mode in LEARNING]
    if "dense" in modes:
        found.append("derived, dense: every token is computed when the last input is there")
    if "exact" in modes:
        found.append(
            "derived, exact: what is computed ahead, and prefix hits, from "
            + (
                "the texts of the prompts"
                if work.texts_known
                else "a prompt's own literals only, as the trace holds no texts"
            )
        )
    for mode in own:
        calls = list(work.calls.values())
        realigned = sum(call.way == "realigned" for call in calls)
        found.append(
            f"from the trace, {mode}: {realigned} of {len(calls)} calls realigned, tokens computed "
            "for them, base KV, audits"
            + (
                ", and the seconds of realigning and learning, as its own device took them"
                if hardware.realign_s is None
                else ""
            )
        )
        if not hardware.offset_bytes:
            found.append(f"left out, {mode}: memory of offset models (`offset_bytes`)")
    if own and len(modes) > 1:
        found.append("answers of other modes may have other lengths: those of the trace are used")
    if fleet.graphs > 1:
        found.append(
            "every graph is that of the trace with texts of its own: graphs share what their "
            "prompts have in common before the first of these"
        )
    return found
