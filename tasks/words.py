"""The words of a text, as a search compares them: in every script, also those without spaces."""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import cache

# Scripts whose words no space parts (Han, kana, Thai, Lao, Burmese, Khmer), and Hangul, whose words
# carry their endings.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# What some write and others leave out: vowels of Hebrew and Arabic, its long strokes, soft hyphens.
OPTIONAL = re.compile(
    "[\u00ad\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f\u0670]"
)
# Behind an apostrophe: Ada's, don't, we'll.
ENDING = re.compile(r"(?<=\w)['’](?:s|t|d|m|ll|re|ve)\b", re.IGNORECASE)
UNSPACED_SIGN = re.compile(f"[{UNSPACED}]")
# "a" as a name: Vitamin A, "plan a?". The article stands before a word, and is a capital only
# where a sentence begins.
NAME_A = re.compile(r"(?:\w[\s-]+(?=A)|\b(?=[Aa]\b(?!\s*[^\W_])))(?P<name>[Aa])\b")
# "IT" and "OR", in a text that has small letters, too.
CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
ARTICLES_AND_THE_LIKE = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
# Arrows, mathematics, pictures: each is a word.
SIGNS = "\u20a0-\u20cf\u2190-\u2bff\U0001f000-\U0001faff"
STOPWORDS = frozenset(ARTICLES_AND_THE_LIKE.split())


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without those that stand in every English text.

    A word may be a single letter or digit; `C++` and `C#` are words, and `c`, too. Of a run of
    characters that no space parts, each is a word and so is each pair of neighbours.
    """
    text = ENDING.sub("", OPTIONAL.sub("", unicodedata.normalize("NFKC", text)))
    names = {found.start("name") for found in NAME_A.finditer(text)}
    if not text.isupper():
        names |= {found.start() for found in CAPITALS.finditer(text)}
    found: list[str] = []
    for match in _pattern().finditer(text):
        word = match["word"]
        if word is None:
            run = _characters().findall(match["run"])
            found += [*run, *map("".join, itertools.pairwise(run))]
            continue
        word = word.casefold().replace("i\u0307", "i")  # of İ
        if word not in STOPWORDS or match.start() in names or _touched(text, match):
            found += [word, word + match["sign"]] if match["sign"] else [word]
    return found


def _touched(text: str, word: re.Match[str]) -> bool:
    """Whether a character that no space parts stands beside a word: A型."""
    around = text[max(word.start() - 1, 0) : word.start()] + text[word.end() : word.end() + 1]
    return UNSPACED_SIGN.search(around) is not None


@cache
def _pattern() -> re.Pattern[str]:
    letter = rf"[^\W_{UNSPACED}]"
    word = rf"(?P<word>[{SIGNS}]|{letter}+(?:[{_marks()}]+{letter}*)*)(?P<sign>\+\+|#)?"
    return re.compile(rf"(?P<run>[{UNSPACED}][{UNSPACED}{_marks()}]*)|{word}")


@cache
def _characters() -> re.Pattern[str]:
    """Finds one character with the marks on it."""
    return re.compile(rf"[^\W_][{_marks()}]*")


@cache
def _marks() -> str:
    """Signs that stand on other characters, such as the vowels of Hindi and Thai."""
    characters = map(chr, range(0x300, 0xFF00))  # a set of these is one table for `re`
    return "".join(c for c in characters if unicodedata.category(c).startswith("M"))
