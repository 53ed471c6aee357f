"""The process that finds and compares mathematical answers: one JSON object a line in, one out.

Run as `python -m kvcomm.tasks.scoring.math_worker`. It may hang on a hostile expression; who
started it kills it then.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from kvcomm.tasks.scoring.math_answer import readings
from kvcomm.tasks.scoring.math_equal import near, number_text, same_on_reals
from kvcomm.tasks.scoring.math_notation import plain, tidy, to_latex

NORMAL = NormalizationConfig(units=False, malformed_operators=True, nits=False, boxed="none")
# Digits and their base: 4210_5, (4210)_{5}, 4210 base 5, 4210_{\text{five}}.
BASE = re.compile(r"\(?(\d[\da-z]*)\)?(?:_|\(?base)\{?(\d+|[a-z]+)\}?\)?")
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
BASES |= {"ten": 10, "twelve": 12, "sixteen": 16}


def judged(text: str, gold: str) -> dict[str, Any]:
    """Whether the answer in a text is the gold one, and how it was read."""
    found = readings(text)
    if not found:
        return {"extracted": "", "correct": False, "reason": "no answer found"}
    for said in found:
        if plain(said) == plain(gold):
            return {"extracted": shown(said), "correct": True, "reason": "equal"}
    comma = not re.search(r"\d,\d", gold)
    value, said = next(
        ((value, said) for said in found if (value := parsed(said, comma)) is not None),
        (None, found[0]),
    )
    reply = {"extracted": shown(said), "correct": False, "reason": f"it is {gold}"}
    based = _digits(said), _digits(gold)
    known = parsed(gold, False)
    if known is None and not based[1]:
        reply["reason"] = f"other text than {gold!r}, which is no expression"
    elif based[0] and based[1]:
        reply["correct"] = _in_bases(*based)
    elif value is None or known is None:
        reply["reason"] = "not comparable"
    else:
        reply["correct"] = equal(known, value)
    if reply["correct"]:
        reply["reason"] = "equal"
    return reply


def equal(known: Any, value: Any) -> bool:
    """Whether math-verify finds both equal, and no number in them differs."""
    if verify(known, value, timeout_seconds=None):
        return near(known, value)
    return same_on_reals(known, value)


@lru_cache(4096)
def parsed(text: str, comma: bool) -> Any:
    """The expression that a text says from its first sign to its last; None where it says none."""
    latex = to_latex(text, comma)
    if latex is None:
        return None
    latex = normalize_latex(latex, NORMAL)
    try:
        return latex2sympy(
            latex, is_real=not should_treat_as_complex(latex), normalization_config=None
        )
    except Exception:
        return None


def shown(text: str) -> str:
    """An answer for people, and for comparison with others: numbers read alike."""
    value = parsed(text, True)
    return (number_text(value) if value is not None else "") or re.sub(r"\s+", " ", tidy(text))


def _digits(text: str) -> tuple[str, int] | None:
    """A number's digits and its base, 0 where none is written."""
    bare = plain(text)
    if found := BASE.fullmatch(bare):
        base = BASES.get(found[2], 0) or (int(found[2]) if found[2].isdigit() else 0)
        return (found[1], base) if 2 <= base <= 36 else None
    return (bare, 0) if re.fullmatch(r"\d+", bare) else None


def _in_bases(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether two numbers are equal; one without a base is taken to have the other's."""
    if not one[1] or not other[1]:
        return one[0].lstrip("0") == other[0].lstrip("0")
    try:
        return int(*one) == int(*other)
    except ValueError:
        return False


def main() -> None:
    """Answer every request until the input ends."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            reply = judged(request["text"], request["gold"])
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
