"""Loading an engine for a benchmark: in this process, and able to reuse KV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvcomm.cli.output import complain
from kvcomm.errors import ReuseRefused

if TYPE_CHECKING:
    from kvcomm.engine.local import LocalEngine


@contextmanager
def reusing(
    model: str, device: str | None, dtype: str | None, memory: int | None = None
) -> Iterator[LocalEngine]:
    """The engine of a model, closed at the end. Raises `ReuseRefused` for one that runs dense."""
    from kvcomm.engine.local import LocalEngine
    from kvcomm.engine.models import load_engine

    complain(f"loading {model}")
    with load_engine(model, device=device, dtype=dtype, memory=memory) as engine:
        if not isinstance(engine, LocalEngine):
            raise ReuseRefused(f"{model} cannot reuse KV: {engine.capabilities.reason}")
        yield engine
