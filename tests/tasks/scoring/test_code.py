"""Code: found in answers, run with tests, counted."""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.code import (
    examples,
    pass_at_k,
    public_report,
    score_code,
)
from kvcomm.tasks.scoring.program import extract_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox

PROMPT = '''import math


def double(x: int) -> int:
    """Twice x.

    >>> double(2)
    4
    >>> double(-1)
    -2
    """
'''
TESTS = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n"
GOOD = "def double(x):\n    return 2 * x"


# Looks for the word that says a program came to its end, in its frames and in all its objects.
HUNT = """
import gc, os, re, sys
frame, text = sys._getframe(), ''
while frame:
    text += ' '.join(str(x) for x in frame.f_locals.values() if type(x) in (str, bytes))
    frame = frame.f_back
for x in gc.get_objects():
    held = list(x.values()) if type(x) is dict else x if type(x) in (list, tuple) else ()
    text += ' '.join(str(x) for x in held if type(x) in (str, bytes) and len(x) < 5000)
for word in re.findall('(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])', text):
    os.write(1, word.encode())
os._exit(0)
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"Here:\n```python\n{GOOD}\n```\nDone.", GOOD),
        (f"```\n{GOOD}\n```", GOOD),
        (f"```py\n{GOOD}", GOOD),
        (f"```python\n{GOOD}\n```\nfor example\n```python\nprint(double(2))\n```", GOOD),
        (f"```python\nold = 1\n```\n```python\n{GOOD}\n```", GOOD),
        (f"Sure!\n{GOOD}\n", GOOD),
        (f"import math\n\n{GOOD}", f"import math\n\n{GOOD}"),
        (f"```bash\nls\n```\nThen:\n```python\n{GOOD}\n```", GOOD),
        (f"```python3\n{GOOD}\n```\nRun it:\n```sh\npython x.py\n```", GOOD),
        (f"```text\n{GOOD}\n```\n```python\nprint(double(2))\n```", GOOD),
        ("```python\nx = 1\n```\n```console\n$ x\n```", "x = 1"),
        ("1. So:\n   ~~~python\n   def double(x):\n       return 2 * x\n   ~~~", GOOD),
        (f"```\nold\n```python\n{GOOD}\n```", GOOD),
        ("    return 2 * x", "    return 2 * x"),
        ("I cannot do that.", None),
        ("", None),
    ],
)
def test_where_the_code_stands(text: str, code: str | None) -> None:
    assert extract_code(text, "double") == code


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{GOOD}\n```",
        "```python\n    return 2 * x\n```",
        "```python\nreturn 2 * x\n```",
        "    return 2 * x",
        "```python\ndef double(x):\n    return math.floor(2 * x)\n```",  # the prompt's import
        f"```python\nfrom __future__ import annotations\n{GOOD}\n```",
    ],
)
def test_right_code_passes(sandbox: Sandbox, answer: str) -> None:
    score = score_code(sandbox, answer, PROMPT, "double", TESTS, Limits(seconds=5))
    assert score.correct, score
    assert score.reason == "passed"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return x", "AssertionError"),
        ("return None", "AssertionError"),
        ("import os; os._exit(0)", "left in the middle"),
        ("raise SystemExit(0)", "left in the middle"),
        ("while True: pass", "timed out"),
        ("return 2 * y", "NameError: name 'y' is not defined"),
        ("return 2 *", "SyntaxError"),
    ],
)
def test_wrong_code_fails_and_says_how(sandbox: Sandbox, body: str, reason: str) -> None:
    answer = f"```python\ndef double(x):\n    {body}\n```"
    score = score_code(sandbox, answer, PROMPT, "double", TESTS, Limits(seconds=1))
    assert not score.correct
    assert reason in score.reason


@pytest.mark.parametrize(
    "trick",
    [
        "def check(candidate): pass\nimport builtins\nbuiltins.print = None",
        "import sys\nsys.stdout.write('passed')",
        "import sys\nsys.exit = lambda *a: None",
        "import builtins\nbuiltins.check = double = print",
        HUNT,
    ],
)
def test_tricks_do_not_pass(sandbox: Sandbox, trick: str) -> None:
    answer = f"```python\n{trick}\ndef double(x):\n    return x\n```"
    assert not score_code(sandbox, answer, PROMPT, "double", TESTS, Limits(seconds=2)).correct


def test_no_code_is_wrong(sandbox: Sandbox) -> None:
    score = score_code(sandbox, "No.", PROMPT, "double", TESTS, Limits())
    assert score.reason == "no code found"


def test_the_examples_of_a_prompt() -> None:
    assert examples(PROMPT, "double") == [("double(2)", "4"), ("double(-1)", "-2")]
    assert examples('def f(x):\n    """\n    >>> f(1)\n    about one\n    """', "f") == []


def test_the_report_of_the_examples(sandbox: Sandbox) -> None:
    assert public_report(sandbox, f"```python\n{GOOD}\n```", PROMPT) == "2 of 2 examples pass."
    wrong = "```python\ndef double(x):\n    return x + 2\n```"
    assert public_report(sandbox, wrong, PROMPT) == (
        "1 of 2 examples pass. `double(-1)` should give -2: gives 1"
    )
    assert public_report(sandbox, "nothing", PROMPT) == "no code found."
    assert "no examples" in public_report(sandbox, GOOD, "def double(x):\n    pass\n")
    assert "names no function" in public_report(sandbox, GOOD, "Write a poem.")


@pytest.mark.parametrize(
    ("n", "right", "k"), [(1, 0, 1), (1, 1, 1), (4, 2, 2), (5, 1, 3), (6, 6, 2)]
)
def test_pass_at_k_is_the_share_of_all_draws(n: int, right: int, k: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0)])
def test_pass_at_k_of_too_few(n: int, right: int, k: int) -> None:
    with pytest.raises(UsageError, match=f"pass@{k} needs"):
        pass_at_k(n, right, k)


@pytest.mark.slow
def test_humaneval_solutions_pass_and_mutants_fail(sandbox: Sandbox) -> None:
    path = Path(os.environ.get("KVCOMM_DATA", "")) / "humaneval.jsonl"
    if "KVCOMM_DATA" not in os.environ or not path.exists():
        pytest.skip("KVCOMM_DATA names no folder with humaneval.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 164

    def passes(row: dict[str, str], body: str) -> bool:
        answer = f"```python\n{row['prompt']}{body}\n```"
        return score_code(
            sandbox, answer, row["prompt"], row["entry_point"], row["test"], Limits()
        ).correct

    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda row: passes(row, row["canonical_solution"]), rows))
        wrong = list(pool.map(lambda row: passes(row, "    return None\n"), rows))
    assert [row["task_id"] for row, good in zip(rows, right, strict=True) if not good] == []
    assert [row["task_id"] for row, bad in zip(rows, wrong, strict=True) if bad] == []
