"""What math-verify's comparison lacks: small differences between numbers count."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import product
from typing import Any

import sympy as sp
from math_verify.grader import get_pct_val

# Exact numbers differ by more than this share; a rounded one has six digits right.
EXACT, ROUNDED = 1e-12, 5e-6
# Where expressions with variables are tried.
POINTS = (sp.Rational(137, 100), sp.Rational(219, 80), sp.Rational(-173, 90))


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
        return all(near(*pair) for pair in zip(known.args, value.args, strict=False))
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
        return any(_difference(*pair) <= share for pair in pairs)
    except Exception:
        # What has no number (infinity, an integral) is left to math-verify.
        return True


def _difference(one: Any, other: Any) -> Any:
    """The difference of two numbers as a share of the larger one."""
    one, other = one.doit(), other.doit()
    larger = max(abs(one.evalf()), abs(other.evalf()))
    return abs(one - other).evalf() / larger if larger else 0
