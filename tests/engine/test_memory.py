"""Running out of memory: caught once, tried again with less, and else a clear error."""

from __future__ import annotations

import pytest
import torch

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local import engine as engine_module
from kvcomm.engine.local.memory import out_of_memory
from kvcomm.errors import NodeFailed
from kvcomm.graphs import chain, fully_connected
from tests.engine.support import Forwards
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

    def __init__(self, forwards: Forwards, fits: int, times: int = 1000) -> None:
        self.fits, self.left, self.failed = fits, times, 0
        forwards.before = self

    def __call__(self, ids: list[int]) -> None:
        if len(ids) > self.fits and self.left:
            self.left -= 1
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("reuse", "fits"), [("dense", 100), ("exact", 60), ("kvcomm", 100)])
def test_a_forward_that_runs_out_is_tried_again_with_less(
    limited: LocalEngine, reuse: str, fits: int, forwards: Forwards
) -> None:
    with session(limited, reuse) as active:
        wanted = active.run(GRAPH, TASK).answer
    limited.forget()
    scarce = Scarce(forwards, fits=fits)
    with session(limited, reuse) as active:
        assert active.run(GRAPH, TASK).answer == wanted
    assert scarce.failed >= 1
    assert limited.runner.limit <= fits * 2
    failed = scarce.failed
    with session(limited, reuse) as active:
        active.run(GRAPH, TASKS[0])
    assert scarce.failed == failed, "steps stay small"


def test_what_was_cached_is_let_go(
    limited: LocalEngine, forwards: Forwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(limited, "exact") as active:
        active.run(GRAPH, TASK)
        assert len(limited.prefix)
        seen = []
        clear = limited.prefix.clear
        monkeypatch.setattr(limited.prefix, "clear", lambda *a: seen.append(clear(*a)))
        Scarce(forwards, fits=0, times=1)
        active.run(GRAPH, TASKS[1])
    assert len(seen) == 1


def test_what_never_fits_is_a_clear_error_and_the_engine_goes_on(
    limited: LocalEngine, forwards: Forwards
) -> None:
    scarce = Scarce(forwards, fits=0)
    with session(limited, "exact") as active:
        with pytest.raises(NodeFailed, match="out of memory while computing") as caught:
            active.run(chain(agent("a")), TASK)
        assert "lower --memory" in str(caught.value)
        scarce.left = 0
        assert active.run(GRAPH, TASK).answer


def test_a_sequence_that_cannot_be_opened_is_tried_again_after_relief(
    limited: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, fails = engine_module.KVBuffer, [True]

    def scarce(*args: object) -> object:
        if fails and fails.pop():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(*args)  # type: ignore[arg-type]

    with session(limited, "exact") as active:
        active.run(chain(agent("a")), TASK)
        assert len(limited.prefix)
        monkeypatch.setattr(engine_module, "KVBuffer", scarce)
        monkeypatch.setattr(limited.prefix, "insert", lambda *_, **__: None)
        assert active.run(chain(agent("a")), TASKS[1]).answer
    assert not fails
    assert not len(limited.prefix)
