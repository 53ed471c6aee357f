"""The engines in this process keep the contract: `local`, and that of last resort."""

from collections.abc import Iterator

import pytest

from kvcomm.engine.base import Engine
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from tests.conformance.engine import EngineContract


@pytest.fixture(scope="module")
def loaded() -> Iterator[LocalEngine]:
    """A model of its own: `generate` and the loop must not run one at the same time."""
    with load_engine("random:llama-tiny", device="cpu", dtype="float64") as local:
        yield local


class TestLocal(EngineContract):
    @pytest.fixture
    def engine(self, tiny: LocalEngine) -> Engine:
        return tiny


class TestDense(EngineContract):
    @pytest.fixture
    def engine(self, loaded: LocalEngine) -> Iterator[Engine]:
        with loaded.plain() as plain:
            yield plain
