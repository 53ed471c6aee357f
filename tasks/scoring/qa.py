"""Short answers in words: exact match and F1, with the normalisation of SQuAD and HotpotQA."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from kvcomm.tasks.scoring.extract import announced, last_box, undecorated
from kvcomm.tasks.scoring.score import Score

PUNCTUATION = str.maketrans("", "", string.punctuation)
# HotpotQA's rule: these share no words with anything but themselves.
CLOSED = frozenset({"yes", "no", "noanswer"})


def score_qa(text: str, accepted: Sequence[str]) -> Score:
    """Exact match (what is averaged) and F1 with the best of the accepted answers."""
    answer = short_answer(text)
    em = max(float(bool(answer) and normalised(answer) == normalised(gold)) for gold in accepted)
    best = max(f1(answer, gold) for gold in accepted)
    reason = "equal" if em else ("some words in common" if best else "other words")
    if not answer:
        reason = "no answer found"
    return Score(em, bool(em), answer, reason, {"em": em, "f1": best})


def short_answer(text: str) -> str:
    """What follows the last "Answer:" or "answer is", or stands in a box; else the last line."""
    found = announced(text) or last_box(text)
    if found is None:
        lines = [line for line in text.split("\n") if line.strip()]
        found = lines[-1] if lines else ""
    return undecorated(found)


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
