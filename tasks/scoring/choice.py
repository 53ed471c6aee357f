"""Multiple choice: the letter that an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from kvcomm.tasks.scoring.extract import GIVEN, last_box, undecorated, untagged, unwrapped
from kvcomm.tasks.scoring.score import Score, right_or_wrong

LETTERS = "ABCD"
# What stands for letters that are ruled out ("not B"), and for several side by side ("A or B").
RULED_OUT, SEVERAL = "\x00", "\x01"
# Full-width forms of ASCII.
NARROW = {0xFF01 + place: 0x21 + place for place in range(94)}
EMPHASIS = re.compile(
    r"\*\*|(?<!\w)[*_`]{1,3}(?=\w)|(?<=\w)[*_`]{1,3}(?!\w)|\$|\\[()\[\]]|(?<=[\"'])}"
)

NOUN = r"(?:(?i:option|choice|letter|answer)\s+)?"
LETTER = rf"(?<![\w'’]){NOUN}(?:[(\[]\s*[A-D]\s*[)\]]|[A-D](?![\w'’]))"
AND = r"\s*(?:[/&+]|,?\s*(?:or|and|nor)\b)\s*(?:(?:maybe|perhaps|possibly)\s+)?"
# Words that rule out, or leave open, what follows.
NOT = (
    r"(?i:\b(?:not|cannot|never|neither|nor|none\s+of|without|if|whether|unless|unlike|except"
    r"|rather\s+than|instead\s+of|than|over|versus|against"
    r"|(?:eliminat|reject|discard|dismiss|exclud)\w{1,3}|rul\w{1,3}\s+out)|n['’]t)\s+"
    r"(?:(?!but\b|so\b|then\b)[a-z]{1,20}\s+){0,3}?"
)
DENIED = re.compile(rf"{NOT}{LETTER}(?:(?:\s*,\s*{LETTER})*{AND}{LETTER})?")
JOINED = re.compile(rf"{LETTER}(?:(?:{AND}|\s*,\s*){LETTER})+")
DENYING = re.compile(rf"{NOT}$")
DOUBT = re.compile(r"\bnot\b|n['’]t\b|\bnone\b|\bneither\b|\bwrong\b|\bincorrect\b", re.IGNORECASE)

MARK = re.compile(
    rf"\b(?:answer|option|choice|letter|pick){GIVEN}|\(X\)\s*(?:is\b|[:=])?", re.IGNORECASE
)
# What may stand before the letter or the text that is chosen.
LEAD = (
    rf"(?i:{RULED_OUT}|(?:but|rather|instead|it['’]?s|it\s+is|is|so|thus|therefore|hence|then|most"
    r"|likely|to\s+be|in\s+my\s+(?:opinion|view)|\w{1,20}ly)\b|[\s,;:>*•#→-])*"
)
# Where a capital is a letter, not a word: "A because" is, "A good" and "D major" are not.
ENDS = (
    rf"(?=\s*$|[).:,;!\"'}}]+(?:\s|$)|\s+[-–—(\[→{RULED_OUT}]"
    r"|\s+(?:because|since|as|for|given|due|which|over|here|and|but)\b)"
)
PICKED = rf"{NOUN}(?:[(\[]\s*([A-D])\s*[)\]](?![\w-])|([A-D]){ENDS})"
LONE = re.compile(rf"{LEAD}{NOUN}[(\[{{'\"]*\s*([A-D])[\s)\]}}.:,;!'\"]*$", re.IGNORECASE)
FIRST = re.compile(rf"{LEAD}(?:{PICKED}|[(\[]\s*([a-d])\s*[)\]](?!\S)|([a-d])[).:]+\s)")
LISTED = re.compile(rf"{LEAD}{NOUN}(?:[(\[]?([A-D])[)\].:]+\s|([A-D]),?\s+(?:because|since|as)\b)")
BEFORE_TEXT = re.compile(rf"{LEAD}{NOUN}[(\[]?([A-D])[)\].:]*\s+", re.IGNORECASE)
TEXT = re.compile(rf"{LEAD}[(\[\"']*")
# A letter within a sentence: in parentheses, or bare behind a word that asks for one.
WITHIN = re.compile(
    r"(?<!\w)[(\[]\s*([A-D])\s*[)\]](?![\w-])"
    r"|\b(?i:so|thus|therefore|hence|option|choice|letter|answer|namely|think|believe|say)\s+"
    rf"([A-D]){ENDS}",
    re.MULTILINE,
)
CHOSEN = re.compile(
    r"\b(?:(?:I|[Ww]e|[Ll]et)(?:['’](?:d|ll|m|ve|re|s))?"
    r"(?:\s+(?:would|will|shall|am|are|have|must|should|can|do|us|now|to|rather|still|then"
    r"|therefore|thus|hence|definitely|probably|finally)\b){0,4}\s+"
    r"(?:(?:pick|select|answer|guess)(?:ed)?|choose|chose|say|take"
    r"|(?:go|going|stick|went)\s+(?:with|for)|(?:opt|vote)\s+for|settle\s+on|lean\s+towards?)"
    r"|[Ii]t(?:['’]s|\s+is|\s+(?:must|has\s+to|should|would)\s+be))"
    rf"\s+{PICKED}",
    re.MULTILINE,
)
VERDICT = re.compile(
    r"(?<![\w'’-])(?:[(\[]\s*([A-D])\s*[)\]]|([A-D]))\s+"
    r"(?:(?:is|was|seems|looks|remains|appears|has|must|would|should)\b"
    r"(?:\s+(?:be|to|the|my|our|most|likely|clearly|definitely|therefore|thus|indeed|only|final"
    r"|single|best|correct|right|probably)\b){0,6}?"
    r"\s+(?:correct|right|best|(?:best\s+)?(?:answer|choice|option|one)(?:\s+(?:to|of|for)\b.*)?)"
    r"|(?:fits|matches)\s+best|makes\s+(?:the\s+)?most\s+sense)"
    r"(?=\s*$|[.,;:!)]|\s+[-–—(]|\s+(?:because|since|as|for|here|and)\b)",
    re.MULTILINE,
)
CLOSING = re.compile(rf"(?:{WITHIN.pattern})[\s.,;!)\"'{RULED_OUT}]*$")
CLAUSE = re.compile(r"[.!?;:,]\s|\b(?:so|thus|but)\b")
# What makes a text another one than the choice that it begins with: "2,5", "2 %", "2 + x".
OTHER = (
    r"(?!\w|[.,:/'’-]\w|[ \t]*(?:[+*/^=<>×÷·%]|[-−][ \t]*[\d(])|[ \t]+\d"
    r"|[ \t]+(?:is|are|was)(?:n['’]t|[ \t]+(?:not|wrong|incorrect))\b)"
)
# What leaves a text open: "eight or", "2 and 5".
OPEN = re.compile(r"\s+or\b|\s*(?:,|&|and\b)\s*\d")
ALSO = re.compile(rf"{AND}|\s*,\s*")
ARTICLE = re.compile(r"(?:an?|the)\s+(?!(?:or|and|only|is|as|[a-d])\b)(?=\w)", re.IGNORECASE)
# As far back as words that deny are looked for.
BACK = 80

Texts = Mapping[str, re.Pattern[str]]


def score_choice(text: str, gold: str, choices: Sequence[str]) -> Score:
    """Whether the letter that the text chooses is `gold`."""
    letter = chosen_letter(text, choices)
    if letter is None:
        return right_or_wrong(False, "", "no answer found")
    correct = letter == gold
    return right_or_wrong(correct, letter, "equal" if correct else f"it is {gold}")


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text chooses; None where it chooses none, or more than one.

    It is the last letter (or text of a choice) that begins what follows "answer is", "Answer:" or
    "option is"; else the one in a box; else the last one alone on a line; else the one that is
    said to be picked or correct; else the only one within what follows a mark; else the one that
    ends the text in parentheses; else the only one that begins a line ("B. eight"). Failing
    these, it is the only choice whose text is repeated. "A good reason" is no A.
    """
    texts = _texts(choices)
    body, box = (_readable(part, texts) for part in (text, last_box(text) or ""))
    claims = list(_claims(body))
    lines = [undecorated(line) for line in body.split("\n")]
    for claim in chain(claims, [undecorated(box)]):
        if letter := _first(claim, texts):
            return letter
    alone = [found[1].upper() for line in lines if (found := LONE.match(line))]
    if alone:
        return alone[-1]
    sayings = [claim for claim in claims if not DOUBT.search(claim)]
    for form, parts in ((CHOSEN, [body]), (VERDICT, [body]), (WITHIN, sayings)):
        for part in parts:
            if letter := _only(_letter_of(found) for found in form.finditer(part)):
                return letter
    if letter := _closing(lines):
        return letter
    listed = {letter for line in lines if (letter := _listed(line, texts))}
    if listed:
        return _only(listed)
    repeated = _only(letter for letter, form in texts.items() if _repeated(form, body))
    return repeated if repeated and not _left_open(texts[repeated], body) else None


def _texts(choices: Sequence[str]) -> Texts:
    """The texts of choices as patterns, article or not. One that is a mere letter is left out."""
    texts = {}
    for letter, choice in zip(LETTERS, choices, strict=False):
        text = undecorated(_plain(choice))
        words = text[found.end() if (found := ARTICLE.match(text)) else 0 :].split()
        if words and not LONE.match(text):
            joined = r"\s+".join(re.escape(word) for word in words)
            pattern = rf"(?<![\w./−-])(?:(?:an?|the)\s+)?{joined}{OTHER}"
            texts[letter] = re.compile(pattern, re.IGNORECASE)
    return texts


def _plain(text: str) -> str:
    """Without tags, LaTeX's wrappers, dollars and emphasis, in ASCII's narrow forms."""
    return EMPHASIS.sub("", unwrapped(untagged(text).translate(NARROW)))


def _readable(text: str, texts: Texts) -> str:
    """The text without letters that are no choice: those of a choice's text, denied, or several."""
    text = _plain(text)
    for form in texts.values():
        text = form.sub(lambda found: found[0].lower(), text)
    return JOINED.sub(SEVERAL, DENIED.sub(RULED_OUT, text))


def _claims(text: str) -> Iterator[str]:
    """What follows each mark on its line, or on the next one with text; the last one first."""
    end = len(text)
    for mark in reversed(list(MARK.finditer(text))):
        yield undecorated(text[mark.end() : end].lstrip(" \t*:\n").split("\n", 1)[0])
        end = mark.start()


def _first(said: str, texts: Texts) -> str | None:
    """The letter, or that of the text, that begins what is announced as the answer."""
    if lone := LONE.match(said):
        return lone[1].upper()
    if letter := _named(said, texts) or _before_its_text(said, texts):
        return letter
    first = FIRST.match(said)
    return _letter_of(first) if first else None


def _named(said: str, texts: Texts) -> str | None:
    """The letter of the longest choice whose text begins what is said; None if another follows."""
    starts = {0, found.end() if (found := TEXT.match(said)) else 0}
    ends = {
        letter: match.end()
        for letter, form in texts.items()
        for start in starts
        if (match := form.match(said, start))
    }
    end = max(ends.values(), default=0)
    also = ALSO.match(said, end)
    if OPEN.match(said, end) or also and any(f.match(said, also.end()) for f in texts.values()):
        return None
    return _only(letter for letter in ends if ends[letter] == end)


def _before_its_text(said: str, texts: Texts) -> str | None:
    """The letter that begins what is said, where its own text follows."""
    found = BEFORE_TEXT.match(said)
    form = texts.get(found[1].upper()) if found else None
    return found[1].upper() if found and form and form.match(said, found.end()) else None


def _listed(line: str, texts: Texts) -> str | None:
    """The letter that begins a line as in a list of choices, or with its reason."""
    found = LISTED.match(line)
    return _letter_of(found) if found else _before_its_text(line, texts)


def _closing(lines: Sequence[str]) -> str | None:
    """The letter that ends the last line."""
    last = next((line[-BACK:] for line in reversed(lines) if line), "")
    found = CLOSING.search(last)
    if not found or DOUBT.search(CLAUSE.split(last[: found.start()])[-1]):
        return None
    return _letter_of(found)


def _repeated(form: re.Pattern[str], text: str) -> bool:
    """Whether a choice's text stands somewhere and is not denied there."""
    return any(
        not DENYING.search(text, max(0, found.start() - BACK), found.start())
        for found in form.finditer(text)
    )


def _left_open(form: re.Pattern[str], text: str) -> bool:
    """Whether another value is beside a choice's text wherever it stands: "3 or 5"."""
    return all(OPEN.match(text, found.end()) for found in form.finditer(text))


def _letter_of(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group).upper()


def _only(letters: Iterable[str]) -> str | None:
    """The one letter among them; None where there are none or several."""
    different = set(letters)
    return different.pop() if len(different) == 1 else None
