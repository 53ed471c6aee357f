"""Mathematics as models write it, turned into LaTeX that a parser reads as a whole."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

SUPERSCRIPTS, SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙ"
RAISED = re.compile(f"[{SUPERSCRIPTS}]+")
LOWERED = re.compile(f"[{SUBSCRIPTS}]+")
VULGAR = re.compile("[¼-¾⅐-⅞↉]")
BARRED = re.compile("(?:\\d[\u0304\u0305])+")
ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z]|π|(?=[({\\]))")
DEGREE = {"√": "", "∛": "[3]", "∜": "[4]"}
SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑﹣", "-"),
        **dict.fromkeys("×⨯✕✖", r"\times "),
        **dict.fromkeys("·⋅∙•", r"\cdot "),
        **dict.fromkeys("÷⁄∕", "/"),
        **dict.fromkeys("°∘˚", r"^\circ "),
        **dict.fromkeys("∅⌀", r"\emptyset "),
        **dict.fromkeys("∗✱", "*"),
        **dict.fromkeys("’‘′", "'"),
        **{"∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le "},
        **{"⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≅": r"\approx ", "∪": r"\cup "},
        **{"∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "⌊": r"\lfloor ", "⌋": r"\rfloor "},
        **{"⌈": r"\lceil ", "⌉": r"\rceil ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}"},
        **{"ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "△": r"\triangle "},
        **{"π": r"\pi ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta "},
        **{"ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho "},
        **{"σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega "},
        "\u200b": "",
    }
)
DOUBLE_STRUCK = {"ℝ", "ℤ", "ℕ", "ℚ", "ℂ"}


def ascii_mathematics(text: str) -> str:
    """Unicode's signs as LaTeX: roots, powers, fractions, digits of other scripts."""
    if text.isascii():
        return text
    text = BARRED.sub(lambda m: rf"\overline{{{re.sub(r'[^0-9]', '', m[0])}}}", text)
    text = RAISED.sub(lambda m: f"^{{{_level(m[0])}}}", text)
    text = LOWERED.sub(lambda m: f"_{{{_level(m[0])}}}", text)
    text = VULGAR.sub(lambda m: r"\frac{%s}{%s}" % tuple(_level(m[0]).split("⁄")), text)
    text = ROOT.sub(lambda m: rf"\sqrt{DEGREE[m[1]]}" + (f"{{{m[2]}}}" if m[2] else ""), text)
    return "".join(_sign(sign) for sign in text).translate(SIGNS)


def _level(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def _sign(sign: str) -> str:
    if sign.isascii() or sign in DOUBLE_STRUCK:
        return sign
    return str(unicodedata.decimal(sign)) if sign.isdecimal() else _level(sign)


# What stands around a value without being part of it.
CURRENCY = re.compile(r"\b(?:US|AU|CA|HK|NZ|[ACRS](?=\\?\$))\s*\\?\$|[€£¥₹₽₩₪฿₫₦₱₴₺₿¢]")
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
ARRAY = re.compile(r"\\(begin|end)\{(?:array|[bpvBV]?matrix\*?)\}(?:\s*\{[clr| ]*\})?")
AROUND = re.compile(r"^(?:[\s*`\"“”:=]|\\approx\b|~)+|(?:[\s*`\"“”,;:]|(?<!\.)\.)+$")


def tidy(text: str) -> str:
    """Without delimiters, spacing, sizes, currencies and the commands around words."""
    text = CURRENCY.sub("", ascii_mathematics(text))
    text = GROUPED.sub(lambda m: "," if "," in m[0] else "", text).replace(r"\!", "")
    text = re.sub(r"\\[dtc]frac", r"\\frac", SPACING.sub(" ", DELIMITERS.sub("", text)))
    for _ in range(3):
        text = WRAPPER.sub(r" \1 ", text)
    text = ARRAY.sub(r"\\\1{pmatrix}", text)
    return AROUND.sub("", re.sub(r"\\(?:varnothing|O\b)", r"\\emptyset", text))


def plain(text: str) -> str:
    """A form in which answers that are written alike are equal: no case, blanks where needed."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text)).lower()
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", bare)


# Ways to write a number.
PERIOD = r"\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))"
REPEATING = re.compile(rf"(\d*)\.(\d*?)(?:{PERIOD}|\((\d+)\)(?=[^\d(]*$))")
DOTTED = re.compile(r"(\d*)\.(\d*)\\dot\{?(\d)\}?(\d*)\\dot\{?(\d)\}?")
ENDLESS = re.compile(r"(\d+)\.(\d*?)(\d{1,6}?)\3{2,}(?:\.{3}|\\[lc]?dots)")
DOTS = re.compile(r"\.{2,}|\\(?:[lcvd]?dots[cbmio]?)(?![A-Za-z])")
EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])")
THOUSANDS = re.compile(r"(?<![\d.,({\[])\d{1,3}(?:([,' _])\d{3})(?:\1\d{3})*(?![\d/])")
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
    return rf"({whole}+\frac{{{over}}}{{{under}}})" if over < under else found[0]


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


SYMBOLS = "m|s|g|h|L|l|N|J|W|V|A|K|C|F"
UNITS = (
    "mm|cm|dm|km|mg|kg|ml|mL|cl|dl|ft|in|yd|mi|lb|lbs|oz|hr|hrs|yr|yrs|min|sec|ms|am|pm|mph|kmh|kph"
    "|sq|cu|cc|gm|gms|kW|kWh|Hz|kHz|MHz|GB|MB|KB|rpm|pts|pcs|USD|EUR|GBP|Rs|km/h|m/s|mi/h|km/hr"
)
# Words that make another value of a number; none of them is a unit.
CHANGING = re.compile(
    r"\b(?:squared|cubed|factorial|hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?"
    r"|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|millionths?|plus|minus|times"
    r"|over|divided|mod|modulo|choose|point|not|never|than|least|most|to|and|or|is|are|out|base"
    r"|below|above|under|between|except|if|hundreds?|thousands?|millions?|billions?|root|power"
    r"|negative|without|exactly|where|because)\b",
    re.IGNORECASE,
)
WORD = r"(?:[A-Za-z]*[aeiouyAEIOUY][A-Za-z]*|dr|Mrs?)"
# A unit behind a value: " boxes", "cm^2", " square feet per second".
UNIT = re.compile(
    rf"(?:(?:(?<=[\d}})%])|\s)\s*(?:{UNITS})|\s+(?:[A-Za-z]{{3,}}\.?))"
    rf"(?:(?:[\s./-]|\\cdot)+(?:{UNITS}|{SYMBOLS}|a|{WORD}))*"
    rf"(?:\s*(?:\^\s*\{{?[23]\}}?|/\s*(?:{SYMBOLS}|{UNITS})(?:\s*\^\s*\{{?[23]\}}?)?|\.|\)))*$"
)
SYMBOL = re.compile(
    rf"\s+(?:{SYMBOLS})(?:\s*/\s*(?:{SYMBOLS}))?(?:\s*\^\s*\{{?-?[1-3]\}}?)?$|(?<=\d)m/s(?:\^\{{?2\}}?)?$"
)
LABEL = re.compile(r"^(?:[A-Za-z]{2,}[\s']+)*[A-Za-z]{2,}\s*(?:=|:)\s*")
CHOICE = re.compile(r"^\(([A-H])\)\s*(?=[\d\\$-])")
JOINED = re.compile(r"\s*,?\s*\b(?:and|or)\b\s*|\s*;\s*|,\s+(?![^()\[\]{}]*[)\]}])", re.IGNORECASE)
# The parser adds numbers in a row, as in mixed ones, and drops primes.
IN_A_ROW = re.compile(r"(?<![_^])(?<!\\frac)(?<!\\frac )\d\s+\d|'")
BARE_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?|[-+]?\d+/\d+")
WITHIN = re.compile(r"(?<![\w.^_\\{/+*=<>-])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\\?%)?(?![\w^_/*{\\])")
PROSE = re.compile(r"(?:[A-Za-z]{2,}|\b[aAI]\b|[\s.,;:'!?()\"/-])*")
BARE_WORD = re.compile(r"(?<![\\A-Za-z])(?<!begin\{)(?<!end\{)[A-Za-z]{2,}")
TWO_LETTERS = frozenset(
    "am an as at be by do go he if in is it me my no of on or so to up us we cm mm km kg mg ml ft lb oz hr".split()
)


def _words(text: str) -> list[str]:
    """The words in a formula, as against products of letters."""
    return [
        word
        for word in BARE_WORD.findall(text)
        if (len(word) > 2 and re.search("[aeiouyAEIOUY]", word)) or word.lower() in TWO_LETTERS
    ]


def without_unit(text: str) -> str:
    """A value without the unit behind it or the label before it."""
    text = LABEL.sub("", text.strip())
    for unit in (UNIT.search(text), SYMBOL.search(text)):
        if not unit or CHANGING.search(unit[0]):
            continue
        value = text[: unit.start()].strip()
        known = unit.re is UNIT or BARE_NUMBER.fullmatch(value)
        if known and re.search(r"[\d}]\s*[)\]%!]*$", value):
            return value
    return text


def only_number(text: str) -> str | None:
    """The number of a text that has one, and beside it only words that leave it as it is."""
    found = list(WITHIN.finditer(text))
    if len(found) != 1 or len(re.findall(r"\d[\d.]*", text)) > 1 + ("/" in found[0][0]):
        return None
    around = text[: found[0].start()] + " " + text[found[0].end() :]
    if not PROSE.fullmatch(around) or CHANGING.search(around.replace(" is ", " ")):
        return None
    return found[0][0]


def to_latex(text: str, comma: bool = False) -> str | None:
    """LaTeX that says all of a text but units and labels; None where more would be left out."""
    text = CHOICE.sub("", numbers_in_latex(tidy(text), comma))
    if DOTS.search(text):
        return None
    text = latex_calls(text)
    parts = [without_unit(part) for part in JOINED.split(text)]
    joined = ", ".join(part for part in parts if part)
    if _words(joined):
        found = only_number(text)
        if found is None:
            return None
        joined = found
    return None if IN_A_ROW.search(joined) or not joined else joined
