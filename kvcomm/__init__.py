"""kvcomm: agents that hand each other text and the KV cache behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvcomm.version import VERSION

if TYPE_CHECKING:
    from kvcomm.engine.models import load_engine, load_ray, load_served
    from kvcomm.runtime.session import Session

__version__ = VERSION
__all__ = ["Session", "__version__", "load_engine", "load_ray", "load_served"]


def __getattr__(name: str) -> Any:
    """Load the parts that need torch only when they are asked for."""
    if name == "Session":
        from kvcomm.runtime.session import Session

        return Session
    if name in ("load_engine", "load_ray", "load_served"):
        from kvcomm.engine import models

        return getattr(models, name)
    raise AttributeError(f"module 'kvcomm' has no attribute {name!r}")
