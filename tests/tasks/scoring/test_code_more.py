"""More answers with code: odd signs in them, and prompts with imports and helpers.

A line of `answers/prompts.jsonl` holds what is special, the prompt, the answer, and its verdict.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.tasks.scoring.code import score_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox

FILE = Path(__file__).parent / "answers" / "prompts.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
PROMPTS = {
    "PLAIN": '''def total(xs):
    """Return the sum of the list xs.

    >>> total([1, 2])
    3
    """
''',
    "TYPED": '''from typing import List


def total(xs: List[int]) -> int:
    """ Sum of a list.
    >>> total([1, 2])
    3
    """
''',
    "MATHS": '''import math
from typing import List, Tuple


def total(xs: List[float]) -> float:
    """ Sum of a list, use floats.
    """
''',
    "HELPED": '''import math


def double(x):
    """
    Twice x.
    """
    return x * 2


def total(xs: list):
    """
    xs are numbers that went through double; returns the sum of the originals.
    """
''',
    "FUTURE": """from __future__ import annotations
from typing import List


def total(xs: List[int]) -> int:
    '''Sum.'''
""",
    "PAIRED": """def total_pair(a, b):
    return a + b


def total(
    xs,
):
    '''Sum.
    >>> total([1])
    1
    '''
""",
}
SUMS = """
def check(candidate):
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert candidate([-1, 5]) == 4
"""
HALVES = """
def check(candidate):
    for xs in ([1, 2, 3], [], [5]):
        assert candidate([double(x) for x in xs]) == sum(xs)
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize(
    ("prompt", "text", "right"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_answers_to_other_prompts(sandbox: Sandbox, prompt: str, text: str, right: bool) -> None:
    tests = HALVES if prompt == "HELPED" else SUMS
    score = score_code(sandbox, text, PROMPTS[prompt], "total", tests, Limits(seconds=5))
    assert score.correct == right, score
