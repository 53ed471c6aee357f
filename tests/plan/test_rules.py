"""What planning repeats of the engine, because it must not import it."""

from __future__ import annotations

from kvcomm.engine import base, budget, loop
from kvcomm.kv import prefix
from kvcomm.plan import memory, node, replica, workload
from kvcomm.reuse.policy import MODES
from kvcomm.runtime import filling


def test_planning_has_the_engines_numbers() -> None:
    names = ("READY", "AHEAD", "BACKGROUND")
    assert [getattr(replica, n) for n in names] == [getattr(base, n) for n in names]
    assert memory.AHEAD == base.AHEAD
    assert replica.STEP_TOKENS == loop.STEP_TOKENS
    assert replica.STEP_TOKENS_DECODING == loop.STEP_TOKENS_DECODING
    assert replica.FULL_STEP == loop.FULL_STEP
    names = ("STORE", "OFFSETS", "PREFIX", "WHOLE")
    assert [getattr(memory, n) for n in names] == [getattr(budget, n) for n in names]
    assert memory.BLOCK == prefix.BLOCK
    for name in ("FINE", "COARSE", "LEADING"):
        assert getattr(node, name) == getattr(filling, name)
    assert {*workload.LEARNING, "dense", "exact"} == set(MODES)
