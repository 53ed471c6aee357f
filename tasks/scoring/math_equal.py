"""What math-verify's comparison lacks: small differences between numbers count."""

from __future__ import annotations

from itertools import product
from typing import Any

from math_verify.grader import get_pct_val
from sympy import (
    Eq,
    Expr,
    FiniteSet,
    Float,
    MatrixBase,
    Pow,
    Rational,
    S,
    Set,
    Symbol,
    Tuple,
    simplify,
    solve,
)

# Exact numbers differ by more than this share; a rounded one has six digits right.
EXACT, ROUNDED = 1e-12, 5e-6
# Where expressions with variables are tried.
POINTS = (Rational(137, 100), Rational(219, 80), Rational(-173, 90))


def near(known: Any, value: Any) -> bool:
    """Whether no number, element or sample of two equal expressions tells them apart.

    math-verify rounds to so many decimals: two tiny numbers are equal to it.
    """
    if not (isinstance(known, Eq) and isinstance(value, Eq)):
        known, value = _unwrapped(known), _unwrapped(value)
    if isinstance(known, Eq) != isinstance(value, Eq):
        return False
    if isinstance(known, MatrixBase) and isinstance(value, MatrixBase):
        return all(near(*pair) for pair in zip(known.flat(), value.flat(), strict=True))
    if isinstance(known, FiniteSet) and isinstance(value, FiniteSet):
        return all(any(near(a, b) for b in value.args) for a in known.args)
    if isinstance(known, (Tuple, Set)) and type(known) is type(value):
        return all(near(*pair) for pair in zip(known.args, value.args, strict=False))
    if isinstance(known, Eq) and isinstance(value, Eq):
        # Of equations without a real solution math-verify finds all equal.
        ratio = simplify((known.lhs - known.rhs) / (value.lhs - value.rhs))
        return not ratio.free_symbols or bool(solve(known))
    if not (isinstance(known, Expr) and isinstance(value, Expr)):
        return True
    names = sorted(known.free_symbols | value.free_symbols, key=str)
    for first in POINTS if names else POINTS[:1]:
        point = {name: first + Rational(n, 7) for n, name in enumerate(names)}
        if not _close(known.subs(point), value.subs(point)):
            return False
    return True


def same_on_reals(known: Any, value: Any) -> bool:
    """Whether two expressions with roots are equal wherever real: 1/sqrt(n) and sqrt(1/n)."""
    if not (isinstance(known, Expr) and isinstance(value, Expr)):
        return False
    if known.free_symbols != value.free_symbols:
        return False
    names = sorted(known.free_symbols, key=str)
    roots = [power for power in (known + value).atoms(Pow) if power.exp.is_Rational]
    if not 0 < len(names) <= 3 or all(power.exp.is_Integer for power in roots):
        return False
    for signs in product((1, -1), repeat=len(names)):
        point = {
            name: sign * (2 + Rational(137 * n, 1000))
            for n, (name, sign) in enumerate(zip(names, signs, strict=True), 1)
        }
        one, other = (side.subs(point).evalf() for side in (known, value))
        if (one.is_real or other.is_real) and not _close(one, other):
            return False
    positive = {name: Symbol(name.name, positive=True) for name in names}
    return bool(simplify((known - value).subs(positive)) == 0)


def number_text(value: Any) -> str:
    """A rational number as 18, 0.5 or 14/3; nothing for what is none."""
    value = _unwrapped(value)
    if isinstance(value, Float) and abs(value) < 1e15:
        value = Rational(str(value))
    if not isinstance(value, Rational):
        return ""
    if not _terminating(value):
        return str(value)
    decimals = 0
    while value.q != 1 and (value * 10**decimals).q != 1:
        decimals += 1
    digits = str(abs(value.p) * 10**decimals // value.q).rjust(decimals + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits)


def _unwrapped(value: Any) -> Any:
    """The right side of an equation that says what something is, as x + y = 5; else what it is."""
    if not isinstance(value, Eq):
        return value
    terms = value.lhs.as_coefficients_dict() if isinstance(value.lhs, Expr) else {}
    said = value.lhs.is_number or (S.One not in terms and set(terms.values()) <= {S.One})
    return value.rhs if said else value


def _terminating(value: Any) -> bool:
    """Whether a number is a decimal that ends."""
    if isinstance(value, Float):
        return True
    if not isinstance(value, Rational):
        return False
    rest = int(value.q)
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _close(known: Any, value: Any) -> bool:
    try:
        ends = all(_terminating(side.doit()) for side in (known, value))
        share = ROUNDED if (known + value).atoms(Float) and not ends else EXACT
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
