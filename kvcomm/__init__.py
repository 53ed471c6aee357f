"""kvcomm: agents that hand each other text and the KV cache behind it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kvcomm.version import VERSION

if TYPE_CHECKING:
    from kvcomm.engine.load import load_engine, load_ray, load_served
    from kvcomm.runtime.stream_events import (
        Delta,
        NodeEnd,
        NodeError,
        NodeStart,
        Retry,
        RunStart,
        ToolCall,
        ToolResult,
    )
    from kvcomm.session import Session

__version__ = VERSION
__all__ = [
    "Delta",
    "NodeEnd",
    "NodeError",
    "NodeStart",
    "Retry",
    "RunStart",
    "Session",
    "ToolCall",
    "ToolResult",
    "__version__",
    "load_engine",
    "load_ray",
    "load_served",
]
# Who imports the library says where its log goes.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Load the parts that need torch only when they are asked for."""
    if name == "Session":
        from kvcomm.session import Session

        return Session
    if name in ("load_engine", "load_ray", "load_served"):
        from kvcomm.engine import load

        return getattr(load, name)
    if name in __all__:
        from kvcomm.runtime import stream_events

        return getattr(stream_events, name)
    raise AttributeError(f"module 'kvcomm' has no attribute {name!r}")
