"""An answer in any notation (LaTeX, Unicode, calculators', everyday) as LaTeX read as a whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from kvcomm.tasks.scoring.math_units import CHOICE, has_words, only_number, without_unit

Match = re.Match[str]
Rules = list[tuple[re.Pattern[str], str | Callable[[Match], str]]]


def _rules(*pairs: tuple[str, str | Callable[[Match], str]]) -> Rules:
    return [(re.compile(pattern), form) for pattern, form in pairs]


def _applied(rules: Rules, text: str) -> str:
    for pattern, form in rules:
        text = pattern.sub(form, text)
    return text


# Signs, and what they are in LaTeX.
COMMANDS = (
    "times ×⨯✕, cdot ·⋅∙, pm ±, mp ∓, le ≤⩽, ge ≥⩾, ne ≠, approx ≈, infty ∞, emptyset ∅Ø, cup ∪, "
    "cap ∩, in ∈, setminus ∖, lfloor ⌊, rfloor ⌋, lceil ⌈, rceil ⌉, triangle △, mathbb{R} ℝ, "
    "mathbb{Z} ℤ, mathbb{N} ℕ, mathbb{Q} ℚ, mathbb{C} ℂ"
)
SIGNS = {
    **{
        sign: f"\\{name} " for name, signs in map(str.split, COMMANDS.split(", ")) for sign in signs
    },
    **dict.fromkeys("−–‐‑", "-"),
    **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("°∘˚", r"^\circ "),
    **dict.fromkeys("∗✱", "*"),
    **dict.fromkeys("’‘′", "'"),
    "\u200b": "",
    "。": ". ",
    "—": " — ",
}
DEGREE = {"√": "", "∛": "[3]", "∜": "[4]"}
GREEK = "GREEK SMALL LETTER "
GROUPS_OF_SIGNS = _rules(
    ("(?:\\d[\u0304\u0305])+", lambda m: rf"\overline{{{re.sub('[^0-9]', '', m[0])}}}"),
    (
        "[¼-¾⅐-⅞↉]|[⁰¹²³⁴-⁹]+⁄[₀-₉]+",
        lambda m: r"\frac{{{}}}{{{}}}".format(*_folded(m[0]).split("⁄")),
    ),
    ("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+", lambda m: f"^{{{_folded(m[0])}}}"),
    ("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙ]+", lambda m: f"_{{{_folded(m[0])}}}"),
    (
        r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z]|π|(?=[({\\]))",
        lambda m: rf"\sqrt{DEGREE[m[1]]}" + (f"{{{m[2]}}}" if m[2] else ""),
    ),
)


def latex_signs(text: str) -> str:
    """A text in which mathematics is written in LaTeX's signs."""
    if text.isascii():
        return text
    text = _applied(GROUPS_OF_SIGNS, text)
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


WORDS = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|normal)|mbox|hbox|emph|bm"
    r"|boldsymbol|operatorname\*?)\s*\{([^{}]*)\}"
)
# What stands around a value without being part of it.
TIDY = _rules(
    (
        r"\b(?:US|AU|CA|HK|NZ|[ACRS](?=\\?\$))\s*\\?\$|[€£¥₹₽₩₪฿₫₦₱₴₺₿¢]"
        r"|\\(?:pounds|euro|yen|textcent)\b",
        "",
    ),
    # Between groups of digits, then delimiters.
    (r"(?<=\d)(?:\{,\}|,)\\!\s*|(?<=\d)\{,\}(?=\d)", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\[()\[\]]|\\?\$", ""),
    (
        r"(?<!\\)\\[,;:> ]|~|(?<!\\)\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle"
        r"|limits|q?quad|enspace|thinspace)(?![A-Za-z])",
        " ",
    ),
    (r"\\[dtc]frac", r"\\frac"),
    *[(WORDS, r" \1 ")] * 3,
    (r"\\(begin|end)\{(?:array|[bpB]?matrix\*?)\}(?:\s*\{[clr| ]*\})?", r"\\\1{pmatrix}"),
    (r"\\(?:varnothing|O\b|\{\s*\\\})|\b(?:the )?empty set\b", r"\\emptyset"),
)
AROUND = ' \t\r\n*`"“”:;,=~'


def tidy(text: str) -> str:
    """Without delimiters, spacing, sizes, currencies and the commands around words."""
    text = _applied(TIDY, latex_signs(text)).strip(AROUND)
    text = text.removeprefix(r"\approx").lstrip(AROUND)
    return text[:-1].rstrip(AROUND) if text.endswith(".") and not text.endswith("..") else text


def plain(text: str) -> str:
    """A form in which answers that are written alike are equal: no case, blanks where needed."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text)).lower()
    return DOTS.sub("...", re.sub(r"([_^])\{(\w)\}", r"\1\2", bare))


DOTS = re.compile(r"\.{2,}|\\(?:[lcvd]?dots[cbmio]?)(?![A-Za-z])")
PERIOD = r"(?:\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)(?=[^\d(]*$))"
MANY = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
AMERICAN = {ord("."): None, ord(","): "."}


def _repeating(found: Match) -> str:
    whole, before, *periods = found.groups(default="")
    period = "".join(periods)
    nines = (10 ** len(period) - 1) * 10 ** len(before)
    value = Fraction(int(whole + before + period) - int(whole + before or 0), nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(found: Match) -> str:
    whole, over, under = (int(part) for part in found.groups())
    return rf"\frac{{{whole * under + over}}}{{{under}}}" if over < under else found[0]


# Ways to write a number, and the same with digits and a point only.
NUMBERS = _rules(
    (r"(?<=\d)(\.\d*?)(\d{1,6}?)\2{2,}(?:\.{3}|\\[lc]?dots)", r"\1\\overline{\2}"),
    (r"\\dot\{?(\d)\}?(\d*)\\dot\{?(\d)\}?", r"\\overline{\1\2\3}"),
    (rf"(\d*)\.(\d*?){PERIOD}", _repeating),
    (r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])", lambda m: m[0].translate(AMERICAN)),
    (
        r"(?<![\d.,({\[])[1-9]\d{0,2}(?:([,' _])\d{3})(?:\1\d{3})*(?![\d/])",
        lambda m: re.sub(r"[,' _]", "", m[0]),
    ),
)
DECIMAL_COMMA = _rules((r"(?<![\d.,])(\d+),(\d+)(?![\d.,])", r"\1.\2"))
WORDS_OF_NUMBERS = _rules(
    (r"(?<![A-Za-z\d.])(\d+\.?\d*|\.\d+)[eE](?:\+|(-))?0*(\d+)(?![\d.])", r"\1\\cdot 10^{\2\3}"),
    (
        rf"(?i:(\d)\s*({'|'.join(MANY)})\b)",
        lambda m: rf"{m[1]}\cdot 10^{{{MANY[m[2].lower()]}}}",
    ),
    (r"\s*\b(?:percent(?:age)?|per cent|pct)\b", r"\\%"),
    (r"(?i:\b(?:negative|minus)\s+)(?=[\d\\.])", "-"),
    (r"(\d)\s*\^?\{?\s*(?:st|nd|rd|th)\b\s*\}?", r"\1"),
    (r"(?<![\d.,/^_{] )(?<![\d.,/^_{])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])", _mixed),
    (r"(?<![\d.])\.(?=\d)", "0."),
    (r"(?<=\d)\.(?![\d.])", ""),
)
# Notation of calculators and of SymPy.
NAMES = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|lg|pi|theta|alpha|beta"
    "|gamma|delta|lambda|sigma|omega|phi|infty|sqrt"
)
POWERS = _rules((r"(?<=[\w)}])\s*\*\*\s*", "^"), (r"\+/-", r"\\pm "))
CALL = re.compile(r"(?:(?<![A-Za-z\\])|\\)(sqrt|cbrt|exp|abs)\s*\(|(\^)\s*\(")
FORMS = {"sqrt": r"\sqrt{@}", "cbrt": r"\sqrt[3]{@}", "exp": "e^{@}", "abs": "|@|", "^": "^{@}"}
CALLS = 50
NAMED = _rules(
    (r"(?i:(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z]))", r"\\infty "),
    (rf"(?<![\\A-Za-z])({NAMES})(?![A-Za-z])", r"\\\1 "),
    (r"\\sqrt\s*(\d{2,})", r"\\sqrt{\1}"),
    (r"\^\s*(-?\d+(?!\w))", r"^{\1}"),
)


def latex_calls(text: str) -> str:
    """`sqrt(x)` as `\\sqrt{x}`, `x**12` as `x^{12}`, `pi` as `\\pi`."""
    text = _applied(POWERS, text)
    for _ in range(CALLS):
        if not (call := CALL.search(text)):
            break
        depth, at = 1, call.end()
        while at < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        if depth:
            break
        before, after = FORMS[call[1] or call[2]].split("@")
        text = text[: call.start()] + before + text[call.end() : at - 1] + after + text[at:]
    return _applied(NAMED, text)


JOINED = re.compile(
    r"\s*,?\s*\b(?:and|or)\b\s*|\s*;\s*|,\s+(?![^()\[\]{}]*[)\]}])"
    r"|(?<=[\d}])\s+(?=[a-z](?:_\w)?\s*=)",
    re.IGNORECASE,
)
# The parser adds numbers in a row, as in mixed ones, and drops primes.
IN_A_ROW = re.compile(r"(?<![_^])(?<!\\frac)(?<!\\frac )\d\s+\d|'")
LONGEST = 2000


def to_latex(text: str, *, comma: bool = False, prose: bool = True) -> str | None:
    """LaTeX that says all of a text but units and labels; None where more would be left out.

    `comma`: a comma between digits may be the decimal point. `prose`: a number among words counts.
    """
    text = tidy(text)
    if not 0 < len(text) <= LONGEST:
        return None
    text = _applied([*NUMBERS, *(DECIMAL_COMMA if comma else ()), *WORDS_OF_NUMBERS], text)
    if letter := CHOICE.match(text):
        text = text[letter.end() :]
    if DOTS.search(text):
        return None
    parts = [without_unit(part) for part in JOINED.split(latex_calls(text))]
    joined = ", ".join(part for part in parts if part)
    if has_words(joined):
        joined = only_number(text) or "" if prose else ""
    return None if IN_A_ROW.search(joined) else joined or None
