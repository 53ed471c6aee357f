"""The in-process engine keeps the contract."""

from __future__ import annotations

import pytest

from kvcomm.engine.base import Engine
from kvcomm.engine.local import LocalEngine
from tests.conformance.engine import EngineContract


class TestLocal(EngineContract):
    @pytest.fixture
    def engine(self, tiny: LocalEngine) -> Engine:
        return tiny
