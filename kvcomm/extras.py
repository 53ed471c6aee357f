"""Packages of extras: asked for before any work begins, with what to type where one is missing."""

from __future__ import annotations

import importlib.util

from kvcomm.errors import UsageError


def has(module: str) -> bool:
    """Whether the package of `module` is installed."""
    return importlib.util.find_spec(module) is not None


def need(module: str, extra: str) -> None:
    """Raise `UsageError` where the package of `module`, which `extra` brings, is not installed."""
    if not has(module):
        package = module.replace("_", "-")
        raise UsageError(f'{package} is not installed: pip install "kvcomm[{extra}]"')
