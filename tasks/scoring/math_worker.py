"""The process that finds and compares mathematical answers: one JSON object a line in, one out.

Run as `python -m kvcomm.tasks.scoring.math_worker`. It may hang on a hostile expression; who
started it kills it then.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import product
from typing import Any

import sympy as sp
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import get_pct_val, should_treat_as_complex

from kvcomm.tasks.scoring.math_answer import readings
from kvcomm.tasks.scoring.math_latex import plain, tidy, to_latex
from kvcomm.tasks.scoring.math_units import CHOICE

NORMAL = NormalizationConfig(units=False, malformed_operators=True, nits=False, boxed="none")
# Digits and their base: 4210_5, (4210)_{5}, 4210 base 5, 4210_{\text{five}}.
BASE = re.compile(r"\(?(\d[\da-z]*)\)?(?:_|\(?base)\{?(\d+|[a-z]+)\}?\)?")
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
BASES |= {"ten": 10, "twelve": 12, "sixteen": 16}
# Exact numbers differ by more than this share; a rounded one has six digits right.
EXACT, ROUNDED = 1e-12, 5e-6
# Where expressions with variables are tried.
POINTS = (sp.Rational(137, 100), sp.Rational(219, 80), sp.Rational(-173, 90))


def judged(text: str, gold: str) -> dict[str, Any]:
    """Whether the answer in a text is the gold one, and how it was read."""
    if not (found := readings(text)):
        return {"extracted": "", "correct": False, "reason": "no answer found"}
    # Where the gold answer is a list, a comma is none of a number.
    comma = not re.search(r"\d,\d", gold)
    expression = parsed(gold, prose=False) is not None
    for said in found:
        # "(B) 5" is the choice B, and 5.
        letter = CHOICE.match(tidy(said) + " ")
        if plain(gold) in (plain(said), plain(letter[0]) if letter else None):
            return {"extracted": shown(said, comma), "correct": True, "reason": "equal"}
        # What is read whole is the answer: 3 is none of "x = 2 or x = 3".
        if expression and parsed(said, comma=comma) is not None:
            break
    else:
        said = found[0]
    correct, reason = compared(said, gold, comma)
    return {"extracted": shown(said, comma), "correct": correct, "reason": reason}


def compared(said: str, gold: str, comma: bool) -> tuple[bool, str]:
    """Whether an answer is equal to the gold one, and why or why not."""
    based, known_based = _digits(said), _digits(gold)
    known, value = parsed(gold, prose=False), parsed(said, comma=comma)
    if based and known_based:
        correct = _in_bases(based, known_based)
    elif known is None:
        return False, f"other text than {gold!r}, which is no expression"
    elif value is None:
        return False, "not comparable"
    else:
        correct = equal(known, value)
    return correct, "equal" if correct else f"it is {gold}"


def equal(known: Any, value: Any) -> bool:
    """Whether math-verify finds both equal, and no number in them differs."""
    # 9 % is equal to 9 as well as to 0.09.
    for one, other in ((known, value), (get_pct_val(known, known), get_pct_val(value, value))):
        if verify(one, other, timeout_seconds=None):
            return near(one, other)
    return same_on_reals(known, value)


@lru_cache(4096)
def parsed(text: str, *, comma: bool = False, prose: bool = True) -> Any:
    """The expression that a text says from its first sign to its last; None where it says none."""
    latex = to_latex(text, comma=comma, prose=prose)
    if latex is None:
        return None
    latex = normalize_latex(latex, NORMAL)
    with suppress(Exception):
        real = not should_treat_as_complex(latex)
        return latex2sympy(latex, is_real=real, normalization_config=None)
    return None


def shown(text: str, comma: bool) -> str:
    """An answer for people, and for comparison with others: equal numbers read alike."""
    if (value := parsed(text, comma=comma)) is None:
        return re.sub(r"\s+", " ", tidy(text))
    latex = to_latex(text, comma=comma) or ""
    return number_text(value) or re.sub(r"\s*([^\w\s])\s*", r"\1", latex)


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
    with suppress(ValueError):
        return int(*one) == int(*other)
    return False


def near(known: Any, value: Any) -> bool:
    """Whether no number, element or sample of two equal expressions tells them apart.

    math-verify rounds to so many decimals: two tiny numbers are equal to it.
    """

    def both(*kinds: type) -> bool:
        return isinstance(known, kinds) and isinstance(value, kinds)

    if both(sp.Eq):
        # Of equations without a real solution math-verify finds all equal.
        ratio = sp.simplify((known.lhs - known.rhs) / (value.lhs - value.rhs))
        return not ratio.free_symbols or bool(sp.solve(known))
    known, value = _unwrapped(known), _unwrapped(value)
    if isinstance(known, sp.Eq) != isinstance(value, sp.Eq):
        return False
    if both(sp.MatrixBase):
        return all(near(*pair) for pair in zip(known.flat(), value.flat(), strict=True))
    if both(sp.FiniteSet):
        return all(any(near(a, b) for b in value.args) for a in known.args)
    if both(sp.Tuple, sp.Set) and type(known) is type(value):
        return all(map(near, known.args, value.args))
    if not both(sp.Expr):
        return True
    names = sorted(known.free_symbols | value.free_symbols, key=str)
    for first in POINTS if names else POINTS[:1]:
        point = {name: first + sp.Rational(n, 7) for n, name in enumerate(names)}
        if not _close(known.subs(point), value.subs(point)):
            return False
    return True


def same_on_reals(known: Any, value: Any) -> bool:
    """Whether two expressions with roots are equal wherever real: 1/sqrt(n) and sqrt(1/n)."""
    if not (isinstance(known, sp.Expr) and isinstance(value, sp.Expr)):
        return False
    if known.free_symbols != value.free_symbols:
        return False
    names = sorted(known.free_symbols, key=str)
    roots = [power for power in (known + value).atoms(sp.Pow) if power.exp.is_Rational]
    if not 0 < len(names) <= 3 or all(power.exp.is_Integer for power in roots):
        return False
    for signs in product((1, -1), repeat=len(names)):
        at = [sign * (2 + sp.Rational(137 * n, 1000)) for n, sign in enumerate(signs, 1)]
        point = dict(zip(names, at, strict=True))
        one, other = (side.subs(point).evalf() for side in (known, value))
        if (one.is_real or other.is_real) and not _close(one, other):
            return False
    positive = {name: sp.Symbol(name.name, positive=True) for name in names}
    return bool(sp.simplify((known - value).subs(positive)) == 0)


def number_text(value: Any) -> str:
    """A rational number as 18, 0.5 or 14/3; nothing for what is none."""
    value = _unwrapped(value)
    if isinstance(value, sp.Float) and abs(value) < 1e15:
        value = sp.Rational(str(value))
    if not isinstance(value, sp.Rational):
        return ""
    if not _terminating(value):
        return str(value)
    over, under = int(value.p), int(value.q)
    with localcontext(prec=len(str(over)) + under.bit_length()):
        return format((Decimal(over) / under).normalize(), "f")


def _unwrapped(value: Any) -> Any:
    """The right side of an equation that says what something is, as x + y = 5; else what it is."""
    if not isinstance(value, sp.Eq):
        return value
    terms = value.lhs.as_coefficients_dict() if isinstance(value.lhs, sp.Expr) else {}
    bare = sp.S.One not in terms and set(terms.values()) <= {sp.S.One}
    return value.rhs if bare or value.lhs.is_number else value


def _terminating(value: Any) -> bool:
    """Whether a number is a decimal that ends."""
    if isinstance(value, sp.Rational):
        under = int(value.q)
        return bool(10 ** under.bit_length() % under == 0)
    return isinstance(value, sp.Float)


def _close(known: Any, value: Any) -> bool:
    try:
        ends = all(_terminating(side.doit()) for side in (known, value))
        share = ROUNDED if (known + value).atoms(sp.Float) and not ends else EXACT
        # 9 % is equal to 9 as well as to 0.09.
        pairs = ((known, value), (get_pct_val(known, known), get_pct_val(value, value)))
        return any(
            abs(one - other).evalf() <= share * max(abs(one.evalf()), abs(other.evalf()))
            for one, other in ((one.doit(), other.doit()) for one, other in pairs)
        )
    except Exception:
        # What has no number (infinity, an integral) is left to math-verify.
        return True


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
