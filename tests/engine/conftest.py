"""Fixtures of the engine tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvcomm.engine.local import LocalEngine
from tests.engine.support import Forwards, close_all


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Nothing that a test has opened is open in the next one."""
    yield
    close_all()


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    """The forwards of the engine, to be counted and disturbed."""
    return Forwards(monkeypatch)


@pytest.fixture
def limited(tiny: LocalEngine) -> Iterator[LocalEngine]:
    """The tiny engine, whose limits a test may change; in the end nobody holds memory."""
    limit, step = tiny.budget.limit, tiny.runner.limit
    yield tiny
    close_all()
    asyncio.run(tiny.drain())  # what was to be learned is learned
    tiny.core.call(lambda: None).result()
    assert tiny.admission.used == 0
    tiny.budget.limit, tiny.runner.limit = limit, step
