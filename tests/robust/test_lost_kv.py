"""KV that is lost or damaged before it is read: computed, and the trace says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.realign import Realigner
from kvcomm.errors import NodeFailed
from kvcomm.graphs import chain
from kvcomm.kv import Store
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.result import Result
from tests.runtime.support import TASK, Events, agent, session

GRAPH = chain(agent("a", 20), agent("b", 20), agent("c"))
# Realigns every message from the first call on: only rotated.
ROTATE = Realign(Recipe("rotated"))


def vanish(store: Store, key: str) -> None:
    store.drop(key)


def change(store: Store, key: str) -> None:
    if kv := store.get(key):  # else it was lost before
        kv.keys[0, 0, 0, 0] += 1


def blank(store: Store, key: str) -> None:
    if kv := store.get(key):
        kv.values.fill_(float("nan"))


FAULTS = {
    "vanishes": (vanish, "its KV has left the store"),
    "changes": (change, "is damaged: its checksum is another"),
    "is blanked": (blank, "is damaged: its checksum is another"),
}


def run(engine: LocalEngine, policy: object, **options: object) -> Result:
    with session(engine, policy, **options) as active:  # type: ignore[arg-type]
        return active.run(GRAPH, TASK)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_computes_what_was_lost_and_says_what_dense_says(
    tiny: LocalEngine, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, reason = FAULTS[fault]
    dense = run(tiny, "dense")
    reused = run(tiny, ROTATE)
    assert not reused.call("b").report.exact, "the test means nothing without reuse"
    tiny.forget()
    fill = Realigner.fill

    def damaged(self: Realigner, row: object, segment: object, *rest: object, **more: object):  # type: ignore[no-untyped-def]
        if segment.kind == "placeholder" and segment.handle:  # type: ignore[attr-defined]
            damage(tiny.store, segment.handle.key)  # type: ignore[attr-defined]
        return fill(self, row, segment, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Realigner, "fill", damaged)
    result = run(tiny, ROTATE)
    assert [call.text for call in result.calls] == [call.text for call in dense.calls]
    for node, sender in (("b", "a"), ("c", "b")):
        (step,) = (s for s in result.call(node).steps if s.name == sender)
        assert step.way == "compute"
        assert step.computed == step.tokens
        assert reason in step.reason
    assert not any(entry.uses for entry in tiny.store._entries.values())


def spoil(kind: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that no checksum sees: predictions that are no numbers."""
    fill = Realigner.fill

    def spoiled(self: Realigner, row, segment, *rest, **more):  # type: ignore[no-untyped-def]
        before = len(row)
        done = fill(self, row, segment, *rest, **more)
        if done[1]:
            kind(row.slab.values[:, :, before : len(row)])
        return done

    monkeypatch.setattr(Realigner, "fill", spoiled)


def test_a_realigned_row_that_yields_no_numbers_is_computed_instead(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = run(tiny, "dense")
    spoil(lambda values: values.fill_(float("nan")), monkeypatch)
    result = run(tiny, ROTATE)
    assert [call.text for call in result.calls] == [call.text for call in dense.calls]
    for node in "bc":
        report = result.call(node).report
        assert report.exact
        assert "computed, because with reuse the model returned NaN" in report.gate
    monkeypatch.undo()
    again = run(tiny, "exact")
    assert [call.text for call in again.calls] == [call.text for call in dense.calls]


def test_a_model_that_yields_no_numbers_is_a_clear_error(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = tiny.network.lm_head.weight
    kept = weight[0].clone()
    try:
        weight.data[0] = float("nan")
        events = Events()
        with (
            session(tiny, "exact", listeners=(events,)) as active,
            pytest.raises(NodeFailed, match=r"NaN or infinite logits \(float64\)"),
        ):
            active.run(GRAPH, TASK)
    finally:
        weight.data[0] = kept
    assert events.of("end")[0].status == "failed"
    assert run(tiny, "exact").answer
