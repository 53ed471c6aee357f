"""The books of a call stay right when what was followed is taken back."""

from __future__ import annotations

import pytest

from kvcomm.engine.base import Extended
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import Realigner
from kvcomm.errors import NodeFailed
from kvcomm.graphs import chain
from kvcomm.runtime.account import Entry
from tests.runtime.support import TASK, agent, session


def test_taking_back_counts_prefix_and_computed_apart() -> None:
    entry = Entry("placeholder", "a")
    entry.add(range(16), Extended("prefix", 0, 16, 0, "x"), 1.0)
    entry.add(range(16, 32), Extended("compute", 6, 10, 0, "x"), 2.0)
    assert entry.remove(8) == 6
    assert (entry.tokens, entry.computed, entry.prefix) == (24, 0, 24)
    assert entry.ids == list(range(24))
    assert entry.remove(24) == 0
    assert (entry.tokens, entry.computed, entry.prefix, entry.arrivals) == (0, 0, 0, [])


def test_pins_go_when_a_node_fails_behind_its_message(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Realigner, *_: object) -> None:
        if "a" in {segment.name for segment in self.segments}:
            raise RuntimeError("broken")

    monkeypatch.setattr(Realigner, "observe", broken)
    with session(tiny, "kvcomm") as active, pytest.raises(NodeFailed, match="broken"):
        active.run(chain(agent("a"), agent("b")), TASK)
    assert all(entry.pins == 0 for entry in tiny.store._entries.values())


def test_one_namespace_never_learns_from_another(tiny: LocalEngine) -> None:
    graph = chain(agent("a"), agent("b"))
    for namespace in ("alice", "bob"):
        with session(tiny, "kvcomm", namespace=namespace) as active:
            assert "0 anchors" in active.run(graph, TASK).call("b").report.gate
