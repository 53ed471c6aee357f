"""Multiple choice: the letter that an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvcomm.tasks.scoring.extract import announced, last_box, undecorated
from kvcomm.tasks.scoring.score import Score, right_or_wrong

LETTERS = "ABCD"
# A letter on its own, in brackets or before its text: "B", "(B)", "B.", "B) eight", "Option B".
ALONE = re.compile(r"(?:(?:option|choice)\s+)?[(\[]?([A-D])[)\].:]*(?:\s*$|(?<=[)\].:])\s)", re.I)


def score_choice(text: str, gold: str, choices: Sequence[str]) -> Score:
    """Whether the letter that the text chooses is `gold`."""
    letter = chosen_letter(text, choices)
    if letter is None:
        return right_or_wrong(False, "", "no answer found")
    correct = letter == gold
    return right_or_wrong(correct, letter, "equal" if correct else f"it is {gold}")


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter behind the last "answer is" or "Answer:", in a box, or alone on its line.

    Failing these, the only choice whose text the answer repeats. "A good reason" is no A.
    """
    for found in (announced(text), last_box(text)):
        if found is not None and (letter := _letter(found, choices)):
            return letter
    for line in reversed(text.split("\n")):
        if letter := _alone(line):
            return letter
    said = [
        letter
        for letter, choice in zip(LETTERS, choices, strict=False)
        if re.search(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", text, re.IGNORECASE)
    ]
    return said[0] if len(said) == 1 else None


def _letter(text: str, choices: Sequence[str]) -> str | None:
    if letter := _alone(text):
        return letter
    for letter, choice in zip(LETTERS, choices, strict=False):
        if undecorated(text).lower() == undecorated(choice).lower():
            return letter
    # Behind an announcement a bracketed letter counts wherever it stands: "the second one, (B)".
    brackets = re.findall(r"\(([A-D])\)", text)
    return str(brackets[-1]) if brackets else None


def _alone(text: str) -> str | None:
    bare = undecorated(re.sub(r"\\(?:text|mathrm|mathbf)\{([^}]*)\}", r"\1", text))
    found = ALONE.match(bare)
    return found[1].upper() if found and (found[1].isupper() or len(bare) < 3) else None
