"""Where the answer stands in a text: in a box, behind "answer", or at its end."""

from __future__ import annotations

import re

# What may announce an answer; the last one counts.
ANNOUNCED = re.compile(r"(?:answer\s+is\s*:?|answer\s*[:=]|####)", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?")


def last_box(text: str) -> str | None:
    """What stands in the last whole `\\boxed{}` or `\\fbox{}`, braces balanced."""
    found = None
    for start in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth = 1
        for at in range(start.end(), len(text)):
            if text[at] in "{}" and text[at - 1] != "\\":
                depth += 1 if text[at] == "{" else -1
            if depth == 0:
                found = text[start.end() : at].strip()
                break
    return found


def announced(text: str) -> str | None:
    """The rest of the line behind the last "answer is", "Answer:" or "####"; the next if empty."""
    marks = list(ANNOUNCED.finditer(text))
    if not marks:
        return None
    rest = text[marks[-1].end() :].lstrip(" \t*:").lstrip("\n ")
    line = undecorated(rest.split("\n", 1)[0])
    return line or None


def numbers(text: str) -> list[str]:
    """The numbers of a text, thousands separators removed; a fraction of integers is one."""
    return [re.sub(r"[,\s]", "", found).replace("−", "-") for found in NUMBER.findall(text)]


def undecorated(text: str) -> str:
    """Without quotes, emphasis and a final full stop around it."""
    before = None
    while text != before:
        before = text
        text = text.strip().strip('*_`"“”‘’').strip()
        text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    return text
