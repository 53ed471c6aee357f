"""What math-verify's comparison lacks: small differences between numbers count."""

from __future__ import annotations

from itertools import product
from typing import Any

from sympy import Abs, Basic, Eq, Float, FiniteSet, Integer, MatrixBase, Rational, Symbol, Tuple
from sympy import simplify

# Exact numbers differ by more than this share; a rounded one has six digits right.
EXACT, ROUNDED = 1e-12, 5e-6
# Where expressions with variables are tried.
POINTS = (Rational(137, 100), Rational(219, 80), Rational(-173, 90))


def near(known: Any, value: Any) -> bool:
    """Whether no number, element or sample of two equal expressions tells them apart.

    math-verify rounds to so many decimals: two tiny numbers are equal to it.
    """
    known, value = _unwrapped(known), _unwrapped(value)
    if isinstance(known, MatrixBase) and isinstance(value, MatrixBase):
        return all(near(*pair) for pair in zip(known.flat(), value.flat(), strict=True))
    if isinstance(known, (FiniteSet, Tuple)) and isinstance(value, (FiniteSet, Tuple)):
        return all(any(near(a, b) for b in value.args) for a in known.args)
    if not _scalar(known) or not _scalar(value):
        return True
    names = sorted(known.free_symbols | value.free_symbols, key=str)
    if not names:
        return _close(known, value)
    points = [dict(zip(names, found)) for found in _samples(len(names))]
    return all(_close(known.subs(point), value.subs(point)) for point in points)


def same_on_reals(known: Any, value: Any) -> bool:
    """Whether two expressions are equal wherever both are real: 1/sqrt(n) and sqrt(1/n)."""
    if not _scalar(known) or not _scalar(value) or known.free_symbols != value.free_symbols:
        return False
    names = sorted(known.free_symbols, key=str)
    if not names or len(names) > 3 or known.atoms(Float) | value.atoms(Float):
        return False
    positive = {name: Symbol(name.name, positive=True) for name in names}
    difference = (known - value).subs(positive)
    for found in product((1, -1), repeat=len(names)):
        point = {
            name: sign * (2 + Rational(137 * (n + 1), 1000))
            for n, (name, sign) in enumerate(zip(names, found, strict=True))
        }
        one, other = (side.subs(point).evalf() for side in (known, value))
        if (one.is_real or other.is_real) and abs(one - other) > EXACT * abs(one):
            return False
    return bool(simplify(difference) == 0)


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
    """The right side of an equation such as x = 5; else what it is."""
    return value.rhs if isinstance(value, Eq) and value.lhs.is_Symbol else value


def _scalar(value: Any) -> bool:
    return isinstance(value, Basic) and bool(getattr(value, "is_Mul", None) is not None) and not (
        value.is_Relational or value.is_Boolean or getattr(value, "is_set", False)
    ) and hasattr(value, "evalf") and hasattr(value, "__sub__")


def _samples(count: int) -> list[tuple[Rational, ...]]:
    return [tuple(point + Integer(n) / 7 for n in range(count)) for point in POINTS]


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
        floats = known.atoms(Float) | value.atoms(Float)
        share = ROUNDED if floats and not ends else EXACT
        larger = max(abs(known.evalf()), abs(value.evalf()))
        return bool(Abs(known - value).evalf() <= share * larger)
    except Exception:
        # What has no number (infinity, an integral) is left to math-verify.
        return True
