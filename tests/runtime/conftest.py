"""Fixtures of the runtime tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.offsets.linear import LinearOffsets
from tests.cli.conftest import cli
from tests.runtime.support import Held

__all__ = ["cli"]


@pytest.fixture
def predictable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of random models are hardly predictable; what auto does with good ones is tested."""
    monkeypatch.setattr(LinearOffsets, "error", property(lambda self: 0.25))


@pytest.fixture
def held(tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Audits of the tiny engine wait. A session is closed only behind `go`: it finishes them."""
    found = Held(tiny, monkeypatch)
    yield found
    found.go.set()
