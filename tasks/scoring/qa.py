"""Short answers in words: exact match and F1, with the normalisation of SQuAD and HotpotQA."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from kvcomm.tasks.scoring.extract import (
    COLONS,
    GIVEN,
    LAYERS,
    last_box,
    undecorated,
    untagged,
    unwrapped,
)
from kvcomm.tasks.scoring.score import Score

PUNCTUATION = str.maketrans("", "", string.punctuation)
# HotpotQA's rule: these share no words with anything but themselves.
CLOSED = frozenset({"yes", "no", "noanswer"})
# A line that is there for the answer: "**Final answer:** Paris", or a heading "## Answer".
HEAD = re.compile(
    r"[\s>#*_\-•\"“(]*(?:\d{1,2}[.)]\s+)?(?:(?:so|thus|therefore|hence|the|my|our|final|short|correct|best)\b[\s,*_]*)"
    r"{0,5}answer[\"'*_)\]]*(?:\s*\([^()]{0,60}\)|\s+\d{1,2})?[\s*_]*"
    rf"(?:[{COLONS}=→]|[-–—=]+>?\s|$)",
    re.IGNORECASE,
)
WITHIN = re.compile(rf"\banswer{GIVEN}|####", re.IGNORECASE)
# Behind another mark it is one only in lower case: "The Answer Is Never" is a title.
AGAIN = re.compile(rf"(?:\w{{1,20}}\s+){{0,3}}answer{GIVEN}|Answer\s*[{COLONS}=]")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SOURCES = (
    r"(?:passage|paragraph|source|evidence|document|doc|ref|reference|citation|context|text"
    r"|snippet)s?"
)
# What is said about an answer, not the answer: "The answer is clear from passage 3."
ABOUT = re.compile(
    r"(?:(?:not|also|very|quite|\w{1,20}ly)\s+)*"
    r"(?:(?:clear|unclear|obvious|evident|simple|easy|straightforward|correct|consistent|wrong|below)\b"
    r"|(?:mentioned|stated|supported|confirmed|provided|contained|given|found|explained)\b"
    r"|[a-z]{1,20}(?:ed|en|wn)\s+(?:by|in|from|on|at|within)\b|as\s+follows|the\s+following\b"
    rf"|(?:in|from|on|at|within)\s+(?:the\s+)?(?:\w{{1,20}}\s+){{0,3}}{SOURCES}\b)"
)
LINK = r"(?:(?:\w{1,20}\s+){0,3}(?:in|from|by|to|on|per)|see|per|cf\.?)\s+"
ORDINAL = r"(?:first|second|third|fourth|fifth|sixth|last|given|above)\s+"
NUMBERED = r"\s*(?:[:#]|\W{0,3}\d|(?:[A-F]|one|two|three|four|five|six)\b)"
CITED = (
    rf"(?:(?:{LINK})?(?:the\s+)?(?:{SOURCES}{NUMBERED}|(?:pp?|pages?)\W{{0,3}}\d)"
    rf"|(?:{LINK}(?:the\s+)?(?:{ORDINAL})?|(?:the\s+)?{ORDINAL}){SOURCES}\s*(?=[)\],;])"
    rf"|{LINK}\[\d)"
)
# Where an answer was found: "(passage 2)", "[see the third document]", "[1, 4]".
SOURCE = re.compile(
    rf"\s*(?:[(（]{CITED}[^()（）]*[)）]|[\[【](?:{CITED}[^\[\]【】]*|\^?\d+(?:\s*[,;–-]\s*\d+)*)[\]】])$",
    re.IGNORECASE,
)
# The number of a list, and not that of a German club or league: "1. FC Köln".
LISTED = re.compile(
    r"(?:[-•]\s+|\(?\d{1,2}[.)]\s+(?!FC\b|(?:bundes)?liga\W*$))(?=\S)", re.IGNORECASE
)
# Where an answer ends: at a reason, at a clause about it, at the next field of JSON.
REASON = re.compile(
    r"(?<=\S),?\s+because\b|(?<=\S),\s+(?:since|as\s+\w+ed|which|who|where|according)\b"
    r'|",\s*"\w+"\s*:'
)
# At another sentence: no abbreviation is before it, and it does not take the answer back.
AFTER = re.compile(
    r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\bvs)(?<!\b(?:Mrs|Rev|Gen|Col|Sgt|Gov|Sen|Inc|Vol))"
    r"(?<!\b(?:Prof|Capt))\.\s+(?!(?:No|Not|Or|But|Wait|Actually)\b)[A-Z][a-z]*\s+\S+\s+\S"
)
# As far from the end as a source is looked for.
REACH = 120


def score_qa(text: str, accepted: Sequence[str]) -> Score:
    """Exact match (what is averaged) and F1 with the best of the accepted answers."""
    answer = short_answer(text)
    em = max(float(bool(answer) and normalised(answer) == normalised(gold)) for gold in accepted)
    best = max(f1(answer, gold) for gold in accepted)
    reason = "equal" if em else "some words in common" if best else "other words"
    reason = reason if answer else "no answer found"
    return Score(em, bool(em), answer, reason, {"em": em, "f1": best})


def short_answer(text: str) -> str:
    """What follows the last "Answer:" that begins a line, else the last "answer is" in a sentence.

    Else what stands in a box; else the last line. What is only said about the answer ("is clear
    from passage 3") is none, and neither is its source in parentheses part of one.
    """
    text = untagged(text)
    claims = list(_claims(text))
    found = next((said for at_head, said in claims if at_head), None)
    found = found or next((said for _, said in claims), None) or last_box(text)
    if found is None:
        lines = [line for line in text.split("\n") if line.strip()]
        plain = [line for line in lines if not WITHIN.search(line)]
        found = plain[-1] if plain else WITHIN.split(lines[-1])[-1] if lines else ""
    return _bare(found)


def _claims(text: str) -> Iterator[tuple[bool, str]]:
    """What follows each mark, last one first, and whether the mark is at the head of a line.

    It goes on to the end of the line or to a sentence with a mark of its own; the next line
    counts where nothing is there. Within a sentence the first mark counts.
    """
    below = ""
    for line in reversed(text.split("\n")):
        head = HEAD.match(line)
        claims = [[""]] if head else []
        for place, sentence in enumerate(SENTENCE.split(line[head.end() if head else 0 :].strip())):
            mark = None if head and not place else WITHIN.search(sentence)
            if mark:
                claims.append([sentence[mark.end() :]])
            elif claims:
                claims[-1].append(sentence)
        for place, claim in reversed(list(enumerate(claims))):
            at_head = bool(head) and not place
            said = " ".join(claim).lstrip(f" \t*{COLONS}")
            if not undecorated(said):
                said = below
            again = AGAIN.match(said)
            said = said[again.end() :].lstrip(f" \t*{COLONS}") if again else said
            if not at_head and (about := ABOUT.match(said)):
                _, colon, said = said[about.end() :].partition(":")
                said = said if said.strip() or not colon else below
            if undecorated(said):
                yield at_head, said
        below = line if line.strip() else below


def _bare(text: str) -> str:
    """Without wrappers, reasons, the number of a list and its source."""
    text = REASON.split(text, maxsplit=1)[0]
    text = AFTER.split(text, maxsplit=1)[0] if text.rstrip("* ").endswith(".") else text
    text = undecorated(unwrapped(text))
    if number := LISTED.match(text):
        text = undecorated(text[number.end() :])
    for _ in range(LAYERS):
        if not (source := SOURCE.search(text, max(1, len(text) - REACH))):
            break
        text = undecorated(text[: source.start()])
    return text


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall over words."""
    left, right = normalised(answer), normalised(gold)
    if left != right and (left in CLOSED or right in CLOSED):
        return 0.0
    mine, true = left.split(), right.split()
    common = sum((Counter(mine) & Counter(true)).values())
    return 2 * common / (len(mine) + len(true)) if common else 0.0
