"""Multiple choice: the letter that an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from kvcomm.tasks.scoring.extract import GIVEN, last_box, undecorated, untagged, unwrapped
from kvcomm.tasks.scoring.score import Score, right_or_wrong

LETTERS = "ABCD"
# What stands for the texts of the choices, for what is ruled out ("not B"), and for several
# letters or texts side by side ("A or B").
TEXTS, RULED_OUT, SEVERAL = "\ue000\ue001\ue002\ue003", "\x00", "\x01"
# Full-width forms of ASCII; and none of those signs, nor any without width.
NARROW: dict[int, int | str | None] = {0xFF01 + place: 0x21 + place for place in range(94)}
NARROW |= {ord("【"): "[", ord("】"): "]", ord("。"): ". ", ord("、"): ", ", ord("✅"): None}
NARROW |= dict.fromkeys(map(ord, TEXTS + RULED_OUT + SEVERAL + "\u200b\ufeff"))
EMPHASIS = re.compile(
    r"\*\*|(?<!\w)[*_`]{1,3}(?=\w)|(?<=\w)[*_`]{1,3}(?!\w)|\$|\\[()\[\]]|(?<=[\"'])}"
)

# A letter with its brackets, as "[C]", "( c. )" and "<C>" are.
BRACKETS = re.compile(r"[(\[]\s*([A-Da-d])\.?\s*[)\]]|<([A-D])>(?![^\n]*</)")
NOUN = r"(?:(?i:option|choice|letter|answer)\s+)?"
LETTER = rf"(?<![\w'’]){NOUN}(?:\([A-Da-d]\)|[A-D](?![\w'’])|[a-d]\))"
AND = r"(?:\s*[/&+]|(?:\s*,\s*|\s*)(?:or|and|nor)\b)\s*(?:(?:maybe|perhaps|possibly)\s+)?"
# Words that rule out, or leave open, what follows.
NOT = (
    r"(?i:\b(?:not|cannot|never|neither|nor|none\s+of|nobody|no\s+one|false\s+that|without|if|whether"
    r"|unless|suppose|assum\w{1,3}|imagine|unlike|except|otherwise|else"
    r"|rather\s+than|instead\s+of|than|over|versus|against"
    r"|(?:eliminat|reject|discard|dismiss|exclud|contradict|refut)\w{1,3}|rul\w{1,3}\s+out"
    r"|(?<!no )doubt\w{0,3})|n['’]t)\s+"
    r"(?:(?!but\b|so\b|then\b)[a-z]{1,20}\s+){0,3}?"
)
EITHER = rf"(?:{LETTER}|[{TEXTS}])"
# A guess that is taken back: "it could be A, but"; a condition: "A if it is odd", "If so, B would".
DENIED = re.compile(
    rf"\b[Ii]f\s[^.!?\n]{{1,100}},\s(?:then\s)?{LETTER}(?=\s+would\b)"
    rf"|{NOT}{EITHER}(?:(?:\s*,\s*{EITHER})*{AND}{EITHER})?"
    rf"|\b(?:could|may|might)\s+be\s+{EITHER}(?=,?\s+but\s+(?:it|is|the|actually|rather)\b)"
    rf"|{LETTER}(?=\s+(?:if(?!\s+I\b)|unless)\b)"
)
JOINED = re.compile(
    "|".join(rf"{one}(?:(?:{AND}|\s*,\s*){one})+" for one in (LETTER, f"[{TEXTS}]"))
)
DOUBT = re.compile(r"\bnot\b|n['’]t\b|\bnone\b|\bneither\b|\bwrong\b|\bincorrect\b", re.IGNORECASE)

MARK = re.compile(
    r"(?<!incorrect )(?<!wrong )\b"
    r"(?:answer|option|choice|letter|pick|guess|(?:correct|right|best|true)\s+\w{2,20})"
    rf"(?:\(s\)|\s\d{{1,2}}(?=:))?(?:{GIVEN}|\s[-–—|]+>?\s)"
    r"|\(X\)\s*(?:is\b|[:=])?|\bwhere\s+X\s*(?:is\b|[:=])|\bcorrect\s*:",
    re.IGNORECASE,
)
# What may stand before the letter or the text that is chosen.
LEAD = (
    rf"(?i:{RULED_OUT}|(?:but|rather|instead|it['’]?s|it\s+is|is|so|thus|therefore|hence|then|most"
    r"|likely|to\s+be|in\s+my\s+(?:opinion|view)|\w{1,20}ly)\b|[\s,;:>*•#→-])*"
)
# Where a capital is a letter, not a word: "A because" is, "A good" and "D major" are not.
ENDS = (
    rf"(?=\s*$|[).:,;!\"'}}]+(?:\s|$)|\s+[-–—(\[→{RULED_OUT}{SEVERAL}{TEXTS}]"
    r"|\s+(?:because|since|as|for|given|due|which|over|here|and|but|if\s+I)\b)"
)
PICKED = rf"{NOUN}(?:\(([A-Da-d])\)(?![\w-])|([A-D]){ENDS})"
LONE = re.compile(rf"{LEAD}{NOUN}[(\[{{'\"]*\s*([A-D])[\s)\]}}.:,;!'\"]*$", re.IGNORECASE)
FIRST = re.compile(
    rf"{LEAD}(?:{PICKED}|([a-d])(?:(?:[).:]+|\s+[-–—])\s|,\s+(?:because|since|as)\b))"
)
LISTED = re.compile(
    rf"{LEAD}{NOUN}(?:[(\[]?([A-D])[)\].:]+\s(?![A-Z]\.)"
    r"|([A-D]|[a-d](?=,))(?:\s+[–—]\s|,?\s+(?:because|since|as)\b))"
)
ITS_TEXT = re.compile(rf"{LEAD}{NOUN}[(\[]?([A-Da-d])[)\].:,]*\s+(?:[-–—→(]\s*)?([{TEXTS}])")
# A text that is named, unless another value is beside it: "3 or 5".
NAMED = rf"([{TEXTS}])(?!\s+or\b|\s*(?:,|&|and\b)\s*\d)"
TEXT = re.compile(rf"{LEAD}[(\[\"']*{NAMED}")
REPEATED = re.compile(NAMED)
# A letter within a sentence: in parentheses, or bare behind a word that asks for one.
WITHIN = re.compile(
    r"(?<!\w)\(([A-D])\)(?![\w-])"
    r"|\b(?i:so|thus|therefore|hence|option|choice|letter|answer|namely|think|believe|say)\s+"
    rf"([A-D]){ENDS}",
    re.MULTILINE,
)
CHOSEN = re.compile(
    r"\b(?:(?:I|[Ww]e|[Ll]et)(?:['’](?:d|ll|m|ve|re|s))?"
    r"(?:\s+(?:would|will|shall|am|are|have|must|should|can|do|us|now|to|rather|still|then"
    r"|therefore|thus|hence|definitely|probably|finally)\b){0,4}\s+"
    r"(?:(?:pick|select|answer|guess)(?:ed|ing)?|choose|chose|choosing|conclude|say|take"
    r"|(?:go|going|stick|went)\s+(?:with|for)|(?:opt|vote)\s+for|settle\s+on|lean\s+towards?)"
    r"|[Ii]t(?:['’]s|\s+is|\s+(?:must|has\s+to|should|would)\s+be)"
    r"|\b(?:leav(?:es|ing)|left)(?:\s+(?:us|me|with|only|just)\b){0,3})"
    rf"\s+{PICKED}",
    re.MULTILINE,
)
VERDICT = re.compile(
    r"(?:(?<![\w'’-])(?:\(([A-Da-d])\)|([A-D]))|^[^\w\n]*([a-d]))\s+"
    r"(?:(?:is|was|seems|looks|remains|appears|has|must|would|should)\b"
    r"(?:\s+(?:be|to|the|my|our|most|likely|clearly|definitely|therefore|thus|indeed|only|final"
    r"|single|best|correct|right|probably)\b){0,6}?"
    r"\s+(?:correct|right|best|most\s+(?:plausible|likely|probable|convincing|appropriate|accurate)"
    r"|(?:best\s+)?(?:answer|choice|option|one)(?:\s+(?:to|of|for|I|we|that)\b.*)?)"
    r"|it\s+is|(?:fits|matches)\s+best|best\s+(?:fits|matches|describes|explains)\b.*"
    r"|makes\s+(?:the\s+)?most\s+sense)"
    r"(?=\s*$|[.,;:!)]|\s+[-–—(]|\s+(?:because|since|as|for|here|and|based|given|according|in|among)\b)"
    r"|\b(?i:option|choice)\s+\(?([A-D])\)?\s+is\s+true\b",
    re.MULTILINE,
)
CLOSING = re.compile(
    rf"(?:{WITHIN.pattern}|(?<=[.:!]\s)\(([a-d])\)|(?:→|(?<=[a-z])\s[-–—=]+>?)\s+([A-D]))"
    rf"[\s.,;!)\"'{RULED_OUT}]*$"
)
CLAUSE = re.compile(r"[.!?;:,]\s|\b(?:so|thus|but)\b")
# "As figure (B) shows" names no choice.
LABEL = re.compile(
    r"\b(?:figure|fig|equation|eq|part|step|section|table|case|row)\.?\s*$", re.IGNORECASE
)
# What a line of a list says of its letter.
SAID = r"\W*(?:(?:this|that|it)\s+)?(?:(?:is|was)\s+)?"
WRONG = re.compile(
    rf"{SAID}(?:not\s+(?:correct|right|true)|wrong|incorrect|false)\b", re.IGNORECASE
)
CORRECT = re.compile(rf"{SAID}(?:correct|right|true)\b", re.IGNORECASE)
# What makes a text another one than the choice that it begins with: "2,5", "2 %", "2 + x".
OTHER = (
    r"(?!\w|[.,:/'’-]\w|[ \t]*(?:[+*/^=<>×÷·%]|[-−][ \t]*[\d(])|[ \t]+\d"
    r"|[ \t]+(?:is|are|was)(?:n['’]t|[ \t]+(?:not|wrong|incorrect))\b)"
)
# The text "I", which is no "I would".
NUMERAL = r"(i)(?!['’]|[ \t]+(?!and\b|or\b|only\b|is\b|because\b|since\b|as\b)[a-z])"
ARTICLE = re.compile(r"(?:an?|the)\s+(?!(?:or|and|only|is|as|[a-d])\b)(?=\w)", re.IGNORECASE)
# As long as the sentence may be that a letter closes.
BACK = 80


def score_choice(text: str, gold: str, choices: Sequence[str]) -> Score:
    """Whether the letter that the text chooses is `gold`."""
    letter = chosen_letter(text, choices)
    why = "equal" if letter == gold else f"it is {gold}" if letter else "no answer found"
    return right_or_wrong(letter == gold, letter or "", why)


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text chooses; None where it chooses none, or more than one.

    It is the last letter (or text of a choice) that begins what follows "answer is", "Answer:" or
    "option is"; else the one in a box; else the last one alone on a line; else the one that is
    said to be picked or correct; else the only one within what follows a mark; else the one that
    ends the text in parentheses; else the only one that begins a line ("B. eight"). Failing
    these, it is the only choice whose text is repeated. "A good reason" is no A.
    """
    body, box = (_readable(part, tuple(choices)) for part in (text, last_box(text) or ""))
    claims = list(_claims(body))
    lines = [undecorated(line) for line in body.split("\n")]
    for said in chain(claims, [undecorated(box)]):
        if found := LONE.match(said) or TEXT.match(said) or FIRST.match(said):
            return _letter(found)
    alone = [_letter(found) for line in lines if (found := LONE.match(line))]
    if alone:
        return alone[-1]
    sayings = [claim for claim in claims if not DOUBT.search(claim)]
    for form, parts in ((CHOSEN, [body]), (VERDICT, [body]), (WITHIN, sayings)):
        for part in parts:
            if letter := _only(_letter(found) for found in form.finditer(part)):
                return letter
    if letter := _closing(lines):
        return letter
    if listed := _listed(lines):
        return _only(listed)
    return _only(_letter(found) for found in REPEATED.finditer(body))


def _plain(text: str) -> str:
    """Without tags, LaTeX's wrappers, dollars and emphasis, in ASCII's narrow forms."""
    text = BRACKETS.sub(lambda found: f"({found[1] or found[2]})", text.translate(NARROW))
    return EMPHASIS.sub("", unwrapped(untagged(text)))


def _readable(text: str, choices: tuple[str, ...]) -> str:
    """The text with signs for the choices' texts, and for what is ruled out or left open."""
    form, signs = _texts(choices)
    marked = form.sub(lambda found: signs[(found.lastindex or 1) - 1], _plain(text))
    return JOINED.sub(SEVERAL, DENIED.sub(RULED_OUT, marked))


@lru_cache(maxsize=64)
def _texts(choices: tuple[str, ...]) -> tuple[re.Pattern[str], str]:
    """A pattern with a group for each text, article or not, the longest first; and their signs.

    Two choices of one text have the sign for several. A text that is a mere letter is left out.
    """
    signs: dict[str, str] = {}
    for sign, choice in zip(TEXTS, choices, strict=False):
        text = undecorated(_plain(choice))
        text = text[found.end() if (found := ARTICLE.match(text)) else 0 :]
        words = " ".join(text.lower().split())
        if words and not LONE.match(text):
            signs[words] = SEVERAL if words in signs else sign
    longest_first = sorted(signs, key=len, reverse=True)
    forms = (r"\s+".join(map(re.escape, words.split(" "))) for words in longest_first)
    each = "|".join(NUMERAL if form == "i" else f"({form})" for form in forms) or "(?!)"
    pattern = rf"(?<![\w./−-])(?:(?:an?|the)[ \t]+)?(?:{each}){OTHER}"
    return re.compile(pattern, re.IGNORECASE), "".join(signs[words] for words in longest_first)


def _claims(text: str) -> Iterator[str]:
    """What follows each mark on its line, or on the next one with text; the last one first."""
    end = len(text)
    for mark in reversed(list(MARK.finditer(text))):
        yield undecorated(text[mark.end() : end].lstrip(" \t*:\n").split("\n", 1)[0])
        end = mark.start()


def _listed(lines: Sequence[str]) -> set[str]:
    """The letters that begin lines: "B. eight", "B because", "B eight" where this is its text.

    Not those called wrong, and only those called correct where there are any.
    """
    letters, right = set(), set()
    for line in lines:
        found = LISTED.match(line) or ITS_TEXT.match(line)
        if not found:
            continue
        letter = (found[1] or found[2]).upper()
        if found.re is ITS_TEXT and TEXTS[LETTERS.index(letter)] != found[2]:
            continue
        if CORRECT.match(line, found.end()):
            right.add(letter)
        elif not WRONG.match(line, found.end()):
            letters.add(letter)
    return right or letters


def _closing(lines: Sequence[str]) -> str | None:
    """The letter that ends the last line."""
    last = next((line[-BACK:] for line in reversed(lines) if line), "")
    found = CLOSING.search(last)
    before = last[: found.start()] if found else ""
    if not found or LABEL.search(before) or DOUBT.search(CLAUSE.split(before)[-1]):
        return None
    return _letter(found)


def _letter(found: re.Match[str]) -> str:
    """The letter, or that of the text, that a pattern found."""
    sign = next(group for group in found.groups() if group)
    return LETTERS[TEXTS.index(sign)] if sign in TEXTS else sign.upper()


def _only(letters: Iterable[str]) -> str | None:
    """The one letter among them; None where there are none or several."""
    different = set(letters)
    return different.pop() if len(different) == 1 else None
