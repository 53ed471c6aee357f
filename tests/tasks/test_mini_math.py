"""math-mini: every answer is computed once more, by brute force or by sympy."""

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from fractions import Fraction
from itertools import combinations, pairwise, permutations, product
from math import isclose, sqrt
from typing import Any

import pytest
import sympy as sp

from kvcomm.tasks import DATA, SUITES
from kvcomm.tasks.scoring import MathScorer
from kvcomm.tasks.scoring.extract import last_box
from tests.tasks.real import read_lines

ROWS: list[dict[str, Any]] = read_lines(DATA / "math-mini.jsonl")
IDS = [row["id"] for row in ROWS]
x, y = sp.symbols("x y", real=True)


def socks() -> Fraction:
    draws = list(combinations("RRRRRBBBBGGG", 3))
    return Fraction(sum(len(set(draw)) == 3 for draw in draws), len(draws))


def chord() -> sp.Expr:
    half = sp.Integer(6)
    a, b = sp.Point(-half, sp.sqrt(100 - half**2)), sp.Point(half, sp.sqrt(100 - half**2))
    return abs(sp.Triangle(a, b, sp.Point(0, 10)).area)


def nested_root() -> sp.Expr:
    root = sqrt(59 - 30 * sqrt(2))
    (found,) = [
        a * sp.sqrt(2) + b
        for a, b in product(range(-60, 61), repeat=2)
        if isclose(root, a * sqrt(2) + b)
    ]
    return found


def cubic_roots() -> sp.Expr:
    roots = sp.Poly(2 * x**3 - 5 * x**2 + 3 * x - 8).nroots(n=30)
    return sp.nsimplify(sp.re(sum(1 / (root - 1) for root in roots)), rational=True, tolerance=1e-9)


def bisector() -> sp.Expr:
    b = sp.Point(7, 0)
    c = sp.Point(8 * sp.cos(2 * sp.pi / 3), 8 * sp.sin(2 * sp.pi / 3))
    # The foot divides BC in the ratio of the sides.
    return sp.Point(0, 0).distance(b + (c - b) * sp.Rational(7, 15))


def cone() -> sp.Expr:
    radius = sp.Triangle(sp.Point(-6, 0), sp.Point(6, 0), sp.Point(0, 8)).inradius
    return (4 * radius**3) / (6**2 * 8)


def minimum() -> sp.Expr:
    cost = 4 * x + 9 / x**2
    (least,) = [at for at in sp.solve(sp.diff(cost, x), x) if at.is_positive]
    return sp.simplify(cost.subs(x, least))


def half_circle() -> sp.Expr:
    # B and C are the ends of the side of length 21; A is 13 away from B and 20 from C.
    a, b = sp.symbols("a b")
    corner = next(
        at for at in sp.solve([a**2 + b**2 - 169, (a - 21) ** 2 + b**2 - 400]) if at[b] > 0
    )
    top, left, right = sp.Point(corner[a], corner[b]), sp.Point(0, 0), sp.Point(21, 0)
    centre = left + (right - left) * sp.Rational(13, 33)
    # The circle touches the sides themselves, not what extends them.
    assert all(
        sp.Line(top, end).projection(centre) in sp.Segment(top, end) for end in (left, right)
    )
    one, other = (sp.Line(top, end).distance(centre) for end in (left, right))
    assert one == other
    return one


def reciprocals() -> int:
    # One of the two terms is at least 1/6, so m <= 6 or n <= 12; the other number follows.
    third = Fraction(1, 3)
    found = {(Fraction(m), 2 / (third - Fraction(1, m))) for m in range(4, 7)}
    found |= {(1 / (third - Fraction(2, n)), Fraction(n)) for n in range(7, 13)}
    return sum(m.denominator == 1 and n.denominator == 1 for m, n in found)


def functional() -> sp.Expr:
    a, b, c = sp.symbols("a b c")
    form = a * x**2 + b * x + c
    equation = sp.Poly(3 * form + form.subs(x, 2 - x) - x**2, x)
    return form.subs(sp.solve(equation.coeffs(), [a, b, c]))


# What each answer is, found in another way than in the row's solution where there is one.
CHECKS: dict[str, Callable[[], object]] = {
    "product-minus": lambda: 17 * 6 - 38,
    "eighths": lambda: Fraction(5, 6) - Fraction(3, 8),
    "linear": lambda: next(n for n in range(-100, 100) if 7 * n + 5 == 4 * n - 16),
    "flower-bed": lambda: next(9 * w for w in range(1, 30) if 2 * (9 + w) == 30),
    "by-eleven": lambda: 2345 % 11,
    "weekday": lambda: f"{date(2025, 1, 1) + timedelta(days=100):%A}",
    "notebooks": lambda: next(n for n in range(1, 13) if 4 * n + 3 * (13 - n) == 46),
    "even-numbers": lambda: sum(digits[-1] in "24" for digits in permutations("12345", 3)),
    "expand": lambda: sp.expand((2 * x - 3) * (x**2 + x - 4)),
    "absolute": lambda: sp.solveset(sp.Abs(2 * x - 5) <= 9, x, sp.S.Reals),
    "two-lines": lambda: next(iter(sp.linsolve([3 * x - 2 * y - 16, 5 * x + 4 * y - 12], x, y))),
    "sines": lambda: sp.simplify(
        sp.sin(sp.pi / 12) * sp.sin(5 * sp.pi / 12) + sp.cos(sp.pi / 12) ** 2
    ),
    "divisors": lambda: sum(d % 2 == 0 and d % 9 != 0 for d in sp.divisors(2**5 * 3**3 * 7**2)),
    "socks": socks,
    "chord": chord,
    "domain": lambda: sp.solveset((x - 3) / (8 - x) >= 0, x, sp.S.Reals),
    "nested-root": nested_root,
    "circumcenter": lambda: sp.Tuple(
        *sp.Triangle(sp.Point(1, -1), sp.Point(7, -1), sp.Point(3, 3)).circumcenter
    ),
    "cubic-roots": cubic_roots,
    "congruences": lambda: next(n for n in range(1, 100) if 7 * n % 11 == 3 and n % 9 == 7),
    "banner": lambda: sum("NN" not in "".join(word) for word in set(permutations("BANNER"))),
    "bisector": bisector,
    "cone": cone,
    "rational": lambda: sp.solveset(x >= 1 + 6 / x, x, sp.S.Reals),
    "power": lambda: pow(13, 2025, 1000),
    "tulips": lambda: sum(
        "RRR" not in (row := "".join(r)) and "YYY" not in row for r in product("RY", repeat=10)
    ),
    "minimum": minimum,
    "half-circle": half_circle,
    "reciprocals": reciprocals,
    "functional": functional,
}


# The easy ones, every other row.
EASY = (
    *(6 + 6, 2 * 5, 10 / 2, 20 / 2, 7 + 8, 9 + 1, 20 + 30, 8 - 3, 60, 3**2, 4**2, 8 / 2, 1 + 2 + 3),
    *(100 - 50, 9 - 9, 1 * 8, 8 + 2, 6 + 3, 2 + 2, 2 * 3, 2 * 4, 30 + 40, 60 - 30, 10**2, 8 / 2),
    *(100 / 2, 24, 3 + 3, 5 + 4, 10 - 5),
)


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathScorer]:
    with MathScorer() as scorer:
        yield scorer


def test_sixty_rows_of_all_levels_and_subjects_easy_and_hard_ones_in_turn() -> None:
    assert len(set(IDS)) == len(IDS) == 60
    assert {row["level"] for row in ROWS} == {0, 1, 2, 3, 4, 5}
    assert [row["level"] == 0 for row in ROWS] == [True, False] * 30
    assert len({row["subject"] for row in ROWS}) == 7
    fields = {"id", "problem", "answer", "solution", "level", "subject"}
    assert all(set(row) == fields for row in ROWS)
    assert [task.id for task in SUITES["math-mini"].tasks(DATA)] == IDS
    assert (len(EASY), list(CHECKS)) == (30, IDS[1::2])


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_answer_is_what_is_computed(row: dict[str, Any], scorer: MathScorer) -> None:
    found = EASY[IDS.index(row["id"]) // 2] if row["level"] == 0 else CHECKS[row["id"]]()
    text = found if isinstance(found, str) else sp.latex(sp.sympify(found))
    assert scorer.score(f"\\boxed{{{text}}}", row["answer"]).correct, text


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_solution_ends_in_the_answer(row: dict[str, Any], scorer: MathScorer) -> None:
    assert row["solution"].endswith(f"$\\boxed{{{row['answer']}}}$.")
    assert last_box(row["solution"]) == row["answer"]
    assert "boxed" not in row["problem"]
    assert scorer.score(row["solution"], row["answer"]).correct


def test_no_answer_passes_for_the_next_one(scorer: MathScorer) -> None:
    answers = [row["answer"] for row in ROWS if row["level"]]
    for answer, following in pairwise(answers):
        assert not scorer.score(f"\\boxed{{{answer}}}", following).correct
