"""An answer in LaTeX, calculators' or everyday notation, as LaTeX that is read as a whole."""

from __future__ import annotations

import re
from fractions import Fraction

from kvcomm.tasks.scoring.math_signs import latex_signs
from kvcomm.tasks.scoring.math_units import CHOICE, has_words, only_number, without_unit

# What stands around a value without being part of it.
CURRENCY = re.compile(
    r"\b(?:US|AU|CA|HK|NZ|[ACRS](?=\\?\$))\s*\\?\$|[€£¥₹₽₩₪฿₫₦₱₴₺₿¢]"
    r"|\\(?:pounds|euro|yen|textcent)\b"
)
DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\\?\$")
GROUPED = re.compile(r"(?<=\d)(?:\{,\}|,)\\!\s*|(?<=\d)\{,\}(?=\d)")
SPACING = re.compile(
    r"(?<!\\)\\[,;:> ]|~|(?<!\\)\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits"
    r"|q?quad|enspace|thinspace)(?![A-Za-z])"
)
WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|normal)|mbox|hbox|emph|bm"
    r"|boldsymbol|operatorname\*?)\s*\{([^{}]*)\}"
)
ARRAY = re.compile(r"\\(begin|end)\{(?:array|[bpB]?matrix\*?)\}(?:\s*\{[clr| ]*\})?")
AROUND = ' \t\r\n*`"“”:;,=~'


def tidy(text: str) -> str:
    """Without delimiters, spacing, sizes, currencies and the commands around words."""
    text = CURRENCY.sub("", latex_signs(text))
    text = GROUPED.sub(lambda m: "," if "," in m[0] else "", text).replace(r"\!", "")
    text = re.sub(r"\\[dtc]frac", r"\\frac", SPACING.sub(" ", DELIMITERS.sub("", text)))
    for _ in range(3):
        text = WRAPPER.sub(r" \1 ", text)
    text = ARRAY.sub(r"\\\1{pmatrix}", text)
    text = re.sub(
        r"\\(?:varnothing|O\b|\{\s*\\\})|\b(?:the )?empty set\b", r"\\emptyset", text
    ).strip(AROUND)
    text = text.removeprefix(r"\approx").lstrip(AROUND)
    return text[:-1].rstrip(AROUND) if text.endswith(".") and not text.endswith("..") else text


def plain(text: str) -> str:
    """A form in which answers that are written alike are equal: no case, blanks where needed."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text)).lower()
    return DOTS.sub("...", re.sub(r"([_^])\{(\w)\}", r"\1\2", bare))


# Ways to write a number.
PERIOD = r"\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))"
REPEATING = re.compile(rf"(\d*)\.(\d*?)(?:{PERIOD}|\((\d+)\)(?=[^\d(]*$))")
DOTTED = re.compile(r"(\d*)\.(\d*)\\dot\{?(\d)\}?(\d*)\\dot\{?(\d)\}?")
ENDLESS = re.compile(r"(\d+)\.(\d*?)(\d{1,6}?)\3{2,}(?:\.{3}|\\[lc]?dots)")
DOTS = re.compile(r"\.{2,}|\\(?:[lcvd]?dots[cbmio]?)(?![A-Za-z])")
EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])")
THOUSANDS = re.compile(r"(?<![\d.,({\[])[1-9]\d{0,2}(?:([,' _])\d{3})(?:\1\d{3})*(?![\d/])")
DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d+)(?![\d.,])")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\d.])")
MIXED = re.compile(r"(?<![\d.,/^_{] )(?<![\d.,/^_{])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])")
MANY = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALED = re.compile(rf"(\d)\s*({'|'.join(MANY)})\b", re.IGNORECASE)
ORDINAL = re.compile(r"(\d)\s*\^?\{?\s*(?:st|nd|rd|th)\b\s*\}?")
PERCENT = re.compile(r"\s*\b(?:percent(?:age)?|per cent|pct)\b")
NEGATIVE = re.compile(r"\b(?:negative|minus)\s+(?=[\d\\.])", re.IGNORECASE)


def _fraction(whole: str, before: str, period: str) -> str:
    nines = (10 ** len(period) - 1) * 10 ** len(before)
    value = Fraction(int(whole + before + period or 0) - int(whole + before or 0), nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(found: re.Match[str]) -> str:
    whole, over, under = (int(part) for part in found.groups())
    return rf"\frac{{{whole * under + over}}}{{{under}}}" if over < under else found[0]


def numbers_in_latex(text: str, comma: bool) -> str:
    """Every number with digits and a point only; `comma`: a comma may be the decimal point."""
    text = DOTTED.sub(lambda m: _fraction(m[1], m[2], m[3] + m[4] + m[5]), text)
    text = REPEATING.sub(lambda m: _fraction(m[1], m[2], m[3] or m[4] or m[5]), text)
    text = ENDLESS.sub(lambda m: _fraction(m[1], m[2], m[3]), text)
    text = EUROPEAN.sub(lambda m: m[1].replace(".", "") + "." + m[2], text)
    text = THOUSANDS.sub(lambda m: re.sub(r"[,' _]", "", m[0]), text)
    if comma:
        text = DECIMAL_COMMA.sub(r"\1.\2", text)
    text = SCIENTIFIC.sub(lambda m: rf"{m[1]}\cdot 10^{{{int(m[2])}}}", text)
    text = SCALED.sub(lambda m: rf"{m[1]}\cdot 10^{{{MANY[m[2].lower()]}}}", text)
    text = MIXED.sub(_mixed, ORDINAL.sub(r"\1", NEGATIVE.sub("-", PERCENT.sub(r"\\%", text))))
    return re.sub(r"(?<=\d)\.(?![\d.])", "", re.sub(r"(?<![\d.])\.(?=\d)", "0.", text))


# Notation of calculators and of SymPy.
NAMES = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|lg|pi|theta|alpha|beta"
    "|gamma|delta|lambda|sigma|omega|phi|infty|sqrt"
)
NAMED = re.compile(rf"(?<![\\A-Za-z])({NAMES})(?![A-Za-z])")
INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", re.IGNORECASE)
CALL = re.compile(r"(?:(?<![A-Za-z\\])|\\)(sqrt|cbrt|exp|abs)\s*\(|(\^)\s*\(")
FORMS = {
    "sqrt": (r"\sqrt{", "}"),
    "cbrt": (r"\sqrt[3]{", "}"),
    "exp": ("e^{", "}"),
    "abs": ("|", "|"),
    "^": ("^{", "}"),
}
CALLS = 50


def latex_calls(text: str) -> str:
    """`sqrt(x)` as `\\sqrt{x}`, `x**12` as `x^{12}`, `pi` as `\\pi`."""
    text = re.sub(r"(?<=[\w)}])\s*\*\*\s*", "^", text).replace("+/-", r"\pm ")
    for _ in range(CALLS):
        if not (call := CALL.search(text)):
            break
        before, after = FORMS[call[1] or call[2]]
        depth, at = 1, call.end()
        while at < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        if depth:
            break
        text = text[: call.start()] + before + text[call.end() : at - 1] + after + text[at:]
    text = NAMED.sub(r"\\\1 ", INFINITY.sub(r"\\infty ", text))
    text = re.sub(r"\\sqrt\s*(\d{2,})", r"\\sqrt{\1}", text)
    return re.sub(r"\^\s*(-?\d+(?!\w))", r"^{\1}", text)


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
    text = numbers_in_latex(text, comma)
    if letter := CHOICE.match(text):
        text = text[letter.end() :]
    if DOTS.search(text):
        return None
    parts = [without_unit(part) for part in JOINED.split(latex_calls(text))]
    joined = ", ".join(part for part in parts if part)
    if has_words(joined):
        joined = only_number(text) or "" if prose else ""
    return None if IN_A_ROW.search(joined) else joined or None
