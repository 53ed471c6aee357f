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
from tests.runtime.support import TASK, TASKS, agent, answered, session

GRAPH = fully_connected(agent("a", 20), agent("b", 20), agent("c", 10))


def test_what_running_out_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("shapes do not match"))


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
    """And what was cached is let go."""
    wanted = answered(limited, reuse, GRAPH).answer
    cached = len(limited.prefix)
    scarce = Scarce(forwards, fits=fits)
    cleared = []
    forwards.after = lambda ids, logits: cleared.append(len(limited.prefix) < cached)
    assert answered(limited, reuse, GRAPH, namespace="new").answer == wanted
    assert scarce.failed >= 1
    assert any(cleared) or not cached
    assert limited.runner.limit <= fits * 2
    failed = scarce.failed
    answered(limited, reuse, GRAPH, TASKS[0], namespace="new")
    assert scarce.failed == failed, "steps stay small"


def test_what_never_fits_is_a_clear_error(limited: LocalEngine, forwards: Forwards) -> None:
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
        return make(*args)

    with session(limited, "exact") as active:
        active.run(chain(agent("a")), TASK)
        assert len(limited.prefix)
        monkeypatch.setattr(engine_module, "KVBuffer", scarce)
        monkeypatch.setattr(limited.prefix, "insert", lambda *_, **__: None)
        assert active.run(chain(agent("a")), TASKS[1]).answer
    assert not fails
    assert not len(limited.prefix)
