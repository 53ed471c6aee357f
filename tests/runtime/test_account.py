"""The books of a call stay right when what was followed is taken back."""

from __future__ import annotations

import pytest

from kvcomm.engine.base import Extended
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import Realigner
from kvcomm.graphs import chain
from kvcomm.runtime.account import Entry
from tests.runtime.support import TASK, Events, agent, session


def test_taking_back_counts_prefix_and_computed_apart() -> None:
    entry = Entry("placeholder", "a")
    entry.add(range(16), Extended("prefix", 0, 16, 0, "x"), 1.0)
    entry.add(range(16, 32), Extended("compute", 6, 10, 0, "x"), 2.0)
    assert entry.remove(8) == 6
    assert (entry.tokens, entry.computed, entry.prefix) == (24, 0, 24)
    assert entry.ids == list(range(24))
    assert entry.remove(24) == 0
    assert (entry.tokens, entry.computed, entry.prefix, entry.arrivals) == (0, 0, 0, [])


def test_a_node_that_fails_behind_its_message_fails_nothing_and_is_named(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Realigner, *_: object) -> None:
        if "a" in {segment.name for segment in self.segments}:
            raise RuntimeError("broken")

    monkeypatch.setattr(Realigner, "observe", broken)
    graph, events = chain(agent("a"), agent("b")), Events()
    with session(tiny, "kvcomm", listeners=(events,)) as active:
        result = active.run(graph, TASK)
    assert result.call("b").text.strip() == result.answer
    (failed,) = events.of("error")
    assert (failed.node, failed.error) == ("b", "RuntimeError: broken")
    assert failed.instead.strip() == result.answer
    assert all(not entry.uses for entry in tiny.store._entries.values())


def test_one_namespace_never_learns_from_another(tiny: LocalEngine) -> None:
    graph = chain(agent("a"), agent("b"))
    for namespace in ("alice", "bob"):
        with session(tiny, "kvcomm", namespace=namespace) as active:
            assert "0 anchors" in active.run(graph, TASK).call("b").report.gate
