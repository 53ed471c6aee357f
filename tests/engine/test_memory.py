"""Running out of memory: caught once, tried again with less, and else a clear error."""

from __future__ import annotations

import pytest
import torch

from kvcomm.engine import loop as loop_module
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.memory import out_of_memory
from kvcomm.errors import NodeFailed
from kvcomm.graphs import chain, fully_connected
from tests.runtime.support import TASK, TASKS, agent, session

GRAPH = fully_connected(agent("a", 20), agent("b", 20), agent("c", 10))
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(CPU_ERROR)]
)
def test_what_running_out_looks_like(error: Exception) -> None:
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_a_real_allocation_that_fails_looks_like_that() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


class Scarce:
    """Forwards that fail while they have more tokens than fit, as a device would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: int, times: int = 1000) -> None:
        self.fits, self.left, self.failed = fits, times, 0
        forward = loop_module.packed_forward

        def scarce(model: object, ids: list[int], *rest: object) -> torch.Tensor:
            if len(ids) > self.fits and self.left:
                self.left -= 1
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(model, ids, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(loop_module, "packed_forward", scarce)


@pytest.fixture
def fresh(tiny: LocalEngine) -> LocalEngine:
    tiny.loop._step_tokens = loop_module.STEP_TOKENS
    return tiny


@pytest.mark.parametrize("reuse", ["dense", "exact", "kvcomm"])
def test_a_forward_that_runs_out_is_tried_again_with_less(
    fresh: LocalEngine, reuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(fresh, reuse) as active:
        wanted = active.run(GRAPH, TASK).answer
    fresh.forget()
    scarce = Scarce(monkeypatch, fits=100)
    with session(fresh, reuse) as active:
        assert active.run(GRAPH, TASK).answer == wanted
    assert scarce.failed >= 1
    assert fresh.loop._step_tokens <= 100 * 2
    failed = scarce.failed
    with session(fresh, reuse) as active:
        active.run(GRAPH, TASKS[0])
    assert scarce.failed == failed, "steps stay small"


def test_what_was_cached_is_let_go(fresh: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(fresh, "exact") as active:
        active.run(GRAPH, TASK)
        assert len(fresh.prefix)
        seen = []
        clear = fresh.prefix.clear
        monkeypatch.setattr(fresh.prefix, "clear", lambda *a: seen.append(clear(*a)))
        Scarce(monkeypatch, fits=0, times=1)
        active.run(GRAPH, TASKS[1])
    assert len(seen) == 1


def test_what_never_fits_is_a_clear_error_and_the_engine_goes_on(
    fresh: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        Scarce(patched, fits=0)
        with session(fresh, "exact") as active, pytest.raises(NodeFailed) as caught:
            active.run(chain(agent("a")), TASK)
    assert "out of memory while computing" in str(caught.value)
    assert "lower --memory" in str(caught.value)
    fresh.loop._step_tokens = loop_module.STEP_TOKENS
    with session(fresh, "exact") as active:
        assert active.run(GRAPH, TASK).answer


def test_a_row_that_cannot_be_made_is_tried_again_after_relief(
    fresh: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, relieved = loop_module, []
    del make
    from kvcomm.engine import local

    slab, fails = local.Slab, [True]

    def scarce(*args: object) -> object:
        if fails and fails.pop():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return slab(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "Slab", scarce)
    monkeypatch.setattr(fresh, "relieve", lambda: relieved.append(1))
    with session(fresh, "dense") as active:
        assert active.run(chain(agent("a")), TASK).answer
    assert relieved == [1]
    assert fresh.room.used == 0
