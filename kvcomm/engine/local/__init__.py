"""The in-process engine."""

from kvcomm.engine.local.engine import LocalEngine

__all__ = ["LocalEngine"]
