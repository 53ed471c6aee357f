"""Fixtures of the runtime tests."""

from __future__ import annotations

import pytest

from kvcomm.reuse.offsets.linear import LinearOffsets


@pytest.fixture
def predictable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of random models are hardly predictable; what auto does with good ones is tested."""
    monkeypatch.setattr(LinearOffsets, "error", property(lambda self: 0.25))
