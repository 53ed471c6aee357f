"""Where the answer stands in a text: in a box, behind "answer", or at its end."""

from __future__ import annotations

import re

# What may announce an answer; the last one counts.
ANNOUNCED = re.compile(r"(?:answer\**\s+is\s*:?|answer\**\s*[:=]|####)", re.IGNORECASE)
# A formula in its delimiters. A dollar before a digit opens a price, it closes nothing.
FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$(?!\d)", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# As many layers of decoration as are taken off; more are not decoration.
LAYERS = 20
NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?")


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


def leading_formula(text: str) -> str | None:
    """The formula in delimiters that a text begins with, unless its line has another one."""
    found = FORMULA.match(text)
    if not found or FORMULA.search(text[found.end() :].split("\n", 1)[0]):
        return None
    return next(group for group in found.groups() if group is not None).strip()


def numbers(text: str) -> list[str]:
    """The numbers of a text, thousands separators removed; a fraction of integers is one."""
    return [re.sub(r"[,\s]", "", found).replace("−", "-") for found in NUMBER.findall(text)]


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
