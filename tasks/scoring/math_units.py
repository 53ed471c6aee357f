"""Units, labels and other words around a value."""

from __future__ import annotations

import re

SYMBOLS = "m|s|g|h|L|l|N|J|W|V|A|K|C|F"
UNITS = (
    "mm|cm|dm|km|mg|kg|ml|mL|cl|dl|ft|in|yd|mi|lbs?|oz|hrs?|yrs?|min|sec|ms|[ap]\\.?m|mph|kmh|kph|sq"
    "|cu|cc|gms?|kWh?|[kM]?Hz|[GMK]B|rpm|pts|pcs|USD|EUR|GBP|Rs|km/hr?|m/s|mi/hr?"
)
SQUARED = r"\s*\^\s*\{?-?[123]\}?"
WORD = "[A-Za-z]*[aeiouyAEIOUY][A-Za-z]*"
# What makes another value of a number is no unit.
CHANGING = re.compile(
    r"\b(?:squared|cubed|factorial|hal(?:f|ves)|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?"
    r"|ninths?|tenths?|hundredths?|thousandths?|millionths?|hundreds?|thousands?|millions?|billions?"
    r"|plus|minus|negative|over|divided|mod|modulo|choose|root|power|base|out|below|above|under"
    r"|between|than|least|most|not|never|without|except|but|or (?:more|less|fewer)|twice|thrice"
    r"|double|triple|multiples?|divisible|squares? of|cubes? of|logarithm|sine|cosine|tangent"
    r"|log of|reciprocal|inverse|undefined|exceed(?:s|ing)?|up to)\b",
    re.IGNORECASE,
)
# Behind a value: " boxes", "cm^2", " square feet per second"; behind a number a letter too: " m".
UNIT = re.compile(
    rf"(?:(?:(?<=[\d}})%])|\s)\s*(?:{UNITS})|\s+[A-Za-z]{{3,}}\.?)"
    rf"(?:(?:[\s./-]|\\cdot)+(?:{UNITS}|{SYMBOLS}|a|{WORD}))*"
    rf"(?:{SQUARED}|\s*/\s*(?:{SYMBOLS}|{UNITS})(?:{SQUARED})?|\.|\))*$"
)
SYMBOL = re.compile(
    rf"\s+(?:{SYMBOLS})(?:{SQUARED})?(?:\s*(?:/|\\cdot)\s*(?:{SYMBOLS})(?:{SQUARED})?)?$"
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+|/\d+)?(?:\s*\^\s*\{?\\circ\s*\}?)?")
# Before it: "Area = ", and the letter of a choice.
LABEL = re.compile(r"(?:[A-Za-z]{2,}[\s']+)*[A-Za-z]{2,}\s*[=:]\s*")
CHOICE = re.compile(r"\(([A-H])\)\s+(?=-?\d|\\(?:frac|sqrt|pi))")
# A number among words.
WITHIN = re.compile(
    r"(?<![\w.^_\\{/+*=<>-])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\\?%)?(?![\w^_/*{\\])"
)
PROSE = re.compile(r"(?:[A-Za-z]{2,}(?![A-Za-z])|\b[aAI]\b|[\s.,;:'!?()\"/-])*")
BARE = re.compile(r"(?<![\\A-Za-z])(?<!begin\{)(?<!end\{)[A-Za-z]{2,}")
TWO_LETTERS = frozenset(
    ("am an as at be by do he if in is it me my no of on or pm so to up us we " + UNITS)
    .replace("|", " ")
    .split()
)


def has_words(text: str) -> bool:
    """Whether a formula has words, as against products of letters."""
    return any(
        word in TWO_LETTERS or (len(word) > 2 and re.search("[aeiouyAEIOUY]", word))
        for word in BARE.findall(text)
    )


def without_unit(text: str) -> str:
    """A value without the unit behind it or the label before it."""
    label = LABEL.match(text := text.strip())
    if label and not CHANGING.search(label[0]):
        text = text[label.end() :]
    for unit in (UNIT.search(text), SYMBOL.search(text)):
        if not unit or CHANGING.search(unit[0]):
            continue
        value = text[: unit.start()].strip()
        # A letter behind a formula is a factor.
        if unit.re is SYMBOL and not NUMBER.fullmatch(value):
            continue
        if re.search(r"[\w})\]%!]$", value) and not has_words(value):
            return value
    return text


def only_number(text: str) -> str | None:
    """The number of a text that has one, and beside it only words that leave it as it is."""
    found = list(WITHIN.finditer(text))
    if len(found) != 1:
        return None
    around = text[: found[0].start()] + " " + text[found[0].end() :]
    return found[0][0] if PROSE.fullmatch(around) and not CHANGING.search(around) else None
