"""Unicode's mathematics as LaTeX: roots, powers, fractions, signs, digits of other scripts."""

from __future__ import annotations

import re
import unicodedata

RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙ]+")
FRACTION = re.compile("[¼-¾⅐-⅞↉]|[⁰¹²³⁴-⁹]+⁄[₀-₉]+")
BARRED = re.compile("(?:\\d[\u0304\u0305])+")
ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z]|π|(?=[({\\]))")
DEGREE = {"√": "", "∛": "[3]", "∜": "[4]"}
GREEK = "GREEK SMALL LETTER "
# Signs, and what they are in LaTeX.
COMMANDS = {
    "times": "×⨯✕",
    "cdot": "·⋅∙",
    "pm": "±",
    "mp": "∓",
    "le": "≤⩽",
    "ge": "≥⩾",
    "ne": "≠",
    "approx": "≈",
    "infty": "∞",
    "emptyset": "∅Ø",
    "cup": "∪",
    "cap": "∩",
    "in": "∈",
    "setminus": "∖",
    "lfloor": "⌊",
    "rfloor": "⌋",
    "lceil": "⌈",
    "rceil": "⌉",
    "triangle": "△",
    "mathbb{R}": "ℝ",
    "mathbb{Z}": "ℤ",
    "mathbb{N}": "ℕ",
    "mathbb{Q}": "ℚ",
    "mathbb{C}": "ℂ",
}
SIGNS = {
    **{sign: f"\\{name} " for name, signs in COMMANDS.items() for sign in signs},
    **dict.fromkeys("−–‐‑", "-"),
    **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("°∘˚", r"^\circ "),
    **dict.fromkeys("∗✱", "*"),
    **dict.fromkeys("’‘′", "'"),
    "\u200b": "",
    "。": ". ",
    "—": " — ",
}


def latex_signs(text: str) -> str:
    """A text in which mathematics is written in LaTeX's signs."""
    if text.isascii():
        return text
    text = BARRED.sub(lambda m: rf"\overline{{{re.sub('[^0-9]', '', m[0])}}}", text)
    text = FRACTION.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*_folded(m[0]).split("⁄")), text)
    text = RAISED.sub(lambda m: f"^{{{_folded(m[0])}}}", text)
    text = LOWERED.sub(lambda m: f"_{{{_folded(m[0])}}}", text)
    text = ROOT.sub(lambda m: rf"\sqrt{DEGREE[m[1]]}" + (f"{{{m[2]}}}" if m[2] else ""), text)
    return "".join(sign if sign.isascii() else _sign(sign) for sign in text)


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    folded = _folded(sign)
    name = unicodedata.name(folded, "") if len(folded) == 1 else ""
    return f"\\{name.removeprefix(GREEK).lower()} " if name.startswith(GREEK) else folded


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")
