"""Texts of a trace inside a page: whatever they hold, they stay text."""

from __future__ import annotations

import html

from kvcomm.trace.text import plain


def escaped(text: str) -> str:
    """`text` for an element or a quoted attribute, without control characters."""
    return html.escape(plain(text), quote=True)
