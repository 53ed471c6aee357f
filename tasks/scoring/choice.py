"""Multiple choice: the letter that an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from kvcomm.tasks.scoring.extract import LAYERS, last_box, undecorated
from kvcomm.tasks.scoring.score import Score, right_or_wrong

LETTERS = "ABCD"
ANNOUNCED = re.compile(r"\b(?:answer|option|choice)\**(?:\s+is\s*:?|\s*[:=])", re.IGNORECASE)
# The line behind it, as far as an answer may reach.
SAID = re.compile(r"[ \t*:\n]*([^\n]{0,1000})")
WRAPPERS = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\{([^{}]*)\}")
# A letter on its own: "B", "(B)", "B.", "Option B".
LONE = re.compile(r"(?:(?:option|choice)\s+)?[(\[]?([A-D])[)\].:]*$", re.IGNORECASE)
# A letter before its text: "B. eight", "(B) eight", "B: eight".
BEFORE_TEXT = re.compile(r"(?:[Oo]ption\s+|[Cc]hoice\s+)?[(\[]?([A-D])[)\].:]+\s")
# A capital letter in running text. A bare A is an article, unless a reason follows.
WITHIN = re.compile(r"[(\[]([A-D])[)\]]|\b([B-D])\b(?!')|\b(A)(?=[,;.]|\s+(?:because|since|as)\b)")
AND_ANOTHER = re.compile(r"[)\]*]*\s*(?:,|/|&|or|and)\s*[*(\[]*[A-D]\b")
TWO = re.compile(rf"\b[A-D]{AND_ANOTHER.pattern}")
DENIED = re.compile(r"\bnot\b|n't\b|\bnone\b|\bneither\b", re.IGNORECASE)


def score_choice(text: str, gold: str, choices: Sequence[str]) -> Score:
    """Whether the letter that the text chooses is `gold`."""
    letter = chosen_letter(text, choices)
    if letter is None:
        return right_or_wrong(False, "", "no answer found")
    correct = letter == gold
    return right_or_wrong(correct, letter, "equal" if correct else f"it is {gold}")


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text chooses; None where it chooses none, or more than one.

    It stands behind the last "answer is", "Answer:" or "option is" that has one; else in a box;
    else alone on the last such line; else before the text of a choice ("B. eight"), if no other
    letter does. Failing these, it is the only choice whose text is repeated. "A good reason" is
    no A.
    """
    marks = list(ANNOUNCED.finditer(text))
    said = (SAID.match(text, mark.end()) for mark in reversed(marks))
    claims = (found[1] if found else "" for found in said)
    for claim in chain(claims, [last_box(text) or ""]):
        if letter := _letter(_bare(claim), choices):
            return letter
    lines = [_bare(line) for line in text.split("\n")]
    alone = [found[1].upper() for line in lines if (found := LONE.match(line))]
    if alone:
        return alone[-1]
    listed = {found[1] for line in lines if (found := BEFORE_TEXT.match(line))}
    if listed:
        return listed.pop() if len(listed) == 1 else None
    repeated = [
        letter
        for letter, choice in zip(LETTERS, choices, strict=False)
        if re.search(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", text, re.IGNORECASE)
    ]
    return repeated[0] if len(repeated) == 1 else None


def _letter(said: str, choices: Sequence[str]) -> str | None:
    """The letter in what is announced as the answer."""
    for form in (LONE, BEFORE_TEXT):
        if (found := form.match(said)) and not AND_ANOTHER.match(said, found.end(1)):
            return found[1].upper()
    for letter, choice in zip(LETTERS, choices, strict=False):
        if said.lower() == undecorated(choice).lower():
            return letter
    within = list(WITHIN.finditer(said))
    letters = [found[1] or found[2] or found[3] for found in within]
    if not letters or TWO.search(said):
        return None
    # "B because (A) is wrong" begins with its letter; else the one letter counts: "surely (B)".
    if within[0].start() == 0:
        return letters[0]
    return letters[0] if len(set(letters)) == 1 and not DENIED.search(said) else None


def _bare(text: str) -> str:
    """Without LaTeX's wrappers, dollars and emphasis."""
    before = None
    for _ in range(LAYERS):
        if text == before:
            break
        before, text = text, WRAPPERS.sub(r"\1", text)
    return undecorated(re.sub(r"\*\*|\$|\\[()]", "", text))
