"""Engines shared by the tests: tiny random models for logic, the embedded one for behaviour."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine

# No example is a failure because the machine is busy.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


_caches = itertools.count()


@pytest.fixture(scope="session")
def engine_of() -> Iterator[Callable[..., LocalEngine]]:
    """Engines by (name, dtype), loaded once."""
    engines: dict[tuple[str, str], LocalEngine] = {}

    def load(name: str, dtype: str = "float32") -> LocalEngine:
        if (name, dtype) not in engines:
            engines[name, dtype] = load_engine(name, dtype=dtype, device="cpu")
        return engines[name, dtype]

    yield load
    for engine in engines.values():
        engine.close()


@pytest.fixture(autouse=True)
def own_kv_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands of one test find no KV of another one's."""
    folder = tmp_path_factory.getbasetemp() / "kv" / str(next(_caches))
    monkeypatch.setattr("kvcomm.engine.kv_cache.root", lambda: folder)


@pytest.fixture
def tiny(engine_of: Callable[..., LocalEngine]) -> LocalEngine:
    """A tiny random Llama in float64, where equal means equal; empty caches."""
    engine = engine_of("random:llama-tiny", "float64")
    engine.forget()
    return engine


@pytest.fixture
def smol(engine_of: Callable[..., LocalEngine]) -> LocalEngine:
    """The embedded model in float32; empty caches."""
    engine = engine_of("smollm2-135m")
    engine.forget()
    return engine
