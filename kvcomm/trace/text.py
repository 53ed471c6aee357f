"""How numbers and texts of a trace are written for a reader."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# What steers a terminal or hides how a text runs: control characters (C0, C1, delete), separators
# and overrides of the writing direction, half characters. Joiners and marks inside words are text.
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
# As many names as an error message lists.
MOST = 20


def plain(text: str) -> str:
    """`text` without control characters: what a model wrote must not steer the terminal."""
    return STEERING.sub("�", text.replace("\r\n", "\n").replace("\t", "    "))


def escaped(text: str) -> str:
    """`text` for an element of a page or a quoted attribute, without control characters."""
    return html.escape(plain(text), quote=True)


def shorten(text: str, limit: int = 240) -> str:
    """`text` on one line of at most `limit` characters."""
    line = re.sub(r"\s+", " ", plain(text)).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def seconds(value: float) -> str:
    """`0.042` becomes `0.042 s`, `12.34` becomes `12.3 s`: three digits say enough."""
    return f"{number(value)} s"


def megabytes(nbytes: int) -> str:
    """`3.1 MB`; less than that in kB, and `1.20 GB`."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:,.2f} GB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def number(value: float) -> str:
    """A time in seconds without its unit, for columns."""
    digits = 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def plural(count: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Iterable[str]) -> str:
    """Names in backticks, as error messages write them; of many, the first."""
    known = list(names)
    more = f" and {len(known) - MOST:,} more" if len(known) > MOST else ""
    return ", ".join(f"`{name}`" for name in known[:MOST]) + more
