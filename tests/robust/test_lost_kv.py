"""KV that is lost or damaged before it is read: computed, and the trace says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvcomm.engine import realign
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import NodeFailed
from kvcomm.graphs import AgentGraph, chain
from kvcomm.kv import KV
from kvcomm.kv.tiers import GONE
from kvcomm.reuse.policy import Policy
from kvcomm.reuse.recipe import Realign, Recipe
from kvcomm.runtime.result import Result
from tests.runtime.support import TASK, Events, agent, answered, check_at_rest, session, steps_of

GRAPH = chain(agent("a", 20), agent("b", 20), agent("c"))
# Realigns every message, and every text that was read before, from the first call on.
ROTATE = Realign(Recipe("rotated"), borrows=True)


def run(engine: LocalEngine, policy: str | Policy, graph: AgentGraph = GRAPH) -> Result:
    return answered(engine, policy, graph)


def texts(result: Result) -> list[str]:
    return [call.text for call in result.calls]


def test_a_reader_computes_what_was_lost_and_says_what_dense_says(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = texts(run(tiny, "dense"))
    assert not run(tiny, ROTATE).call("b").report.exact, "the test means nothing without reuse"
    tiny.forget()
    cache, get = tiny.segments, tiny.segments.get

    def lost(key: str) -> KV | None:
        if entry := cache._entries.get(key):
            cache._forget(entry, GONE)
        return get(key)

    monkeypatch.setattr(cache, "get", lost)
    result = run(tiny, ROTATE)
    assert texts(result) == expected
    for node, sender in (("b", "a"), ("c", "b")):
        step = steps_of(result, sender)[node]
        assert (step.way, step.computed, step.reason) == ("compute", step.tokens, GONE)
    check_at_rest(tiny)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "damaged: its checksum is another": flipped,
    "cannot be read: Error": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cannot be read: [Errno 2]": Path.unlink,
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_what_was_damaged_on_disk_is_computed(tmp_path: Path, reason: str) -> None:
    with load_engine(
        "random:llama-tiny", dtype="float64", device="cpu", kv_cache=tmp_path
    ) as engine:
        run(engine, ROTATE)
        check_at_rest(engine)
        cache = engine.segments
        moved = engine.core.call(
            lambda: [cache.tiers._move_down(e, 0) for e in [*cache._entries.values()]]
        )
        assert moved.result() == [True]
        other = chain(agent("x"), agent("y"))
        expected = texts(run(engine, "dense", other))
        assert cache.tiers.disk is not None
        cache.tiers.disk.flush()
        (file,) = tmp_path.rglob("*.kv")
        DAMAGES[reason](file)
        result = run(engine, ROTATE, chain(agent("x")))
        assert texts(result) == expected[:1]
        step = steps_of(result)["x"]
        assert step.way == "compute"
        assert step.reason.startswith(f"its KV, kept on the disk, is of no use: {reason}")


def test_a_realigned_prompt_that_yields_no_numbers_is_computed_instead(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that nobody sees before: predictions that are no numbers."""
    expected = texts(run(tiny, "dense"))
    real = realign.realign

    def spoiled(*given: object) -> realign.Realigned:
        found = real(*given)  # type: ignore[arg-type]
        nothing = KV(found.kv.keys, torch.full_like(found.kv.values, torch.nan))
        return realign.Realigned(nothing, found.filled, found.computed)

    with monkeypatch.context() as patch:
        patch.setattr(realign, "realign", spoiled)
        result = run(tiny, ROTATE)
    assert texts(result) == expected
    for node in "bc":
        report = result.call(node).report
        assert report.exact
        assert "computed, because with reuse the model returned NaN" in report.gate
    assert texts(run(tiny, "exact")) == expected


def test_a_model_that_yields_no_numbers_is_a_clear_error(tiny: LocalEngine) -> None:
    weight = tiny.network.lm_head.weight
    kept = weight[0].clone()
    events = Events()
    try:
        weight.data[0] = float("nan")
        with (
            session(tiny, "exact", listeners=(events,)) as active,
            pytest.raises(NodeFailed, match=r"NaN or infinite logits \(float64\)"),
        ):
            active.run(GRAPH, TASK)
    finally:
        weight.data[0] = kept
    assert events.of("end")[0].status == "failed"
    assert run(tiny, "exact").answer
