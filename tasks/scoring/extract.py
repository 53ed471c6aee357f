"""Where the answer stands in a text: in a box, behind "answer", or at its end."""

from __future__ import annotations

import re

# What may announce an answer; the last one counts.
ANNOUNCED = re.compile(r"(?:answer\**\s+is\s*:?|answer\**\s*[:=]|####)", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# As many layers of decoration as are taken off; more are not decoration.
LAYERS = 20


def last_box(text: str) -> str | None:
    """What stands in the last whole `\\boxed{}` or `\\fbox{}`, braces balanced."""
    starts = {box.end() for box in BOX.finditer(text)}
    opened: list[int] = []
    last, found = -1, None
    for sign in BRACE.finditer(text) if starts else ():
        if sign[0] == "{":
            opened.append(sign.end())
        elif sign[0] == "}" and opened and (start := opened.pop()) in starts and start > last:
            last, found = start, text[start : sign.start()]
    return None if found is None else found.strip()


def behind(text: str) -> str | None:
    """All that follows the last "answer is", "Answer:" or "####"."""
    marks = list(ANNOUNCED.finditer(text))
    return text[marks[-1].end() :].lstrip(" \t*:").lstrip() if marks else None


def announced(text: str) -> str | None:
    """The rest of the line behind the last "answer is", "Answer:" or "####"; the next if empty."""
    rest = behind(text)
    return undecorated(rest.split("\n", 1)[0]) or None if rest else None


def undecorated(text: str) -> str:
    """Without quotes, emphasis and a final full stop around it."""
    before = None
    for _ in range(LAYERS):
        if text == before:
            break
        before = text
        text = text.strip().strip('*_`"“”‘’').strip()
        text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    return text
