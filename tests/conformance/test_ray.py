"""The engine on Ray keeps the contract: one cluster of two replicas for all tests of a session."""

from __future__ import annotations

import pytest

from kvcomm.engine.base import Engine
from tests.conformance.engine import EngineContract


class TestRay(EngineContract):
    @pytest.fixture
    def engine(self, replicas: Engine) -> Engine:
        return replicas
