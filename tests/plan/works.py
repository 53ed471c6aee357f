"""Works and hardware written by hand, and drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from kvcomm.plan.hardware import Hardware
from kvcomm.plan.workload import Call, Piece, Work

# A prefilled token takes 1 ms, a step 100 ms however many rows decode; nothing else takes time.
SIMPLE = Hardware(
    name="simple",
    memory=2e9,
    kv_bytes=1000,
    prefill=((1, 0.001), (2, 0.002)),
    decode=((1, 0.1),),
    call_s=0.0,
)


def call(
    node: str, senders: Sequence[Call] = (), *, prompt: int = 100, sampled: int = 5, tail: int = 10
) -> Call:
    """`prompt` tokens of a literal, each sender's message, and `tail` tokens behind them."""
    pieces = [Piece(prompt, prompt, literal=True)]
    pieces += [Piece(s.message, s.message, literal=False, sender=s.node) for s in senders]
    pieces.append(Piece(tail, tail, literal=True))
    return Call(node, tuple(pieces), sampled, sampled, sampled)


def work(*calls: Call) -> Work:
    """A graph in which no two prompts have anything in common but with themselves."""
    shared = {(c.node, c.node): c.prompt for c in calls}
    across = {(c.node, c.node): c.opening for c in calls}
    return Work(
        {c.node: c for c in calls}, {}, calls[-1].node, "exact", shared=shared, across=across
    )


@st.composite
def chains(draw: st.DrawFn) -> Work:
    """Each call hears the one before."""
    calls: list[Call] = []
    for number in range(draw(st.integers(1, 4))):
        prompt, sampled = draw(st.integers(1, 3000)), draw(st.integers(1, 80))
        calls.append(call(f"n{number}", calls[-1:], prompt=prompt, sampled=sampled))
    return work(*calls)


@st.composite
def graphs(draw: st.DrawFn) -> Work:
    """Any graph without cycles."""
    calls: list[Call] = []
    for number in range(draw(st.integers(1, 5))):
        heard = [c for c in calls if draw(st.booleans())]
        prompt, sampled = draw(st.integers(1, 400)), draw(st.integers(1, 80))
        calls.append(call(f"n{number}", heard, prompt=prompt, sampled=sampled))
    return work(*calls)
