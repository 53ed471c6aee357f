"""Code: found in answers as models write them, run with tests, counted.

`answers/right.txt` and `wrong.txt` answer the prompt TYPED of `prompts.txt`. A line of
`prompts.jsonl` holds what is special, a prompt, an answer, whether it is right; one of
`code_read.jsonl` a function, an answer, and the code in it.
"""

import ast
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring import stretches
from kvcomm.tasks.scoring.code import (
    complete,
    examples,
    extract_code,
    pass_at_k,
    public_report,
    score_code,
)
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox
from kvcomm.tasks.scoring.score import Score
from kvcomm.tasks.scoring.stretches import fault, parse
from tests.tasks.real import ANSWERS, cases, read_lines

TESTS = """

METADATA = {}


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
DOUBLE_TESTS = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n"
GOOD = "def double(x):\n    return 2 * x"
DEF = "def total(xs):\n    return sum(xs)\n"
BAD = "def total(xs):\n    return len(xs)\n"
LOOP = "    r = 0\n    for x in xs:\n        r += x\n    return r\n"
BOM, NBSP = "\ufeff", "\u00a0"


def read(name: str) -> dict[str, str]:
    """The answers of a file, each under a line `=== what is special about it`."""
    text = (ANSWERS / name).read_text(encoding="utf-8")
    parts = (part.split("\n", 1) for part in text.removeprefix("=== ").split("\n=== "))
    return {title: answer.removesuffix("\n") for title, answer in parts}


RIGHT = read("right.txt")
WRONG = read("wrong.txt")
PROMPTS = read("prompts.txt")
PROMPT, DOUBLE = PROMPTS["TYPED"], PROMPTS["DOUBLE"]
PROSE = f"{PROMPT}\n\nAnswer with the complete function in one ```python block."
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


def answered(sandbox: Sandbox, text: str, prompt: str = PROMPT, tests: str = TESTS) -> Score:
    return score_code(sandbox, text, prompt, "total", tests, Limits(seconds=5))


ALL = [(text, True) for text in RIGHT.values()] + [(text, False) for text in WRONG.values()]


@pytest.mark.parametrize(("text", "right"), ALL, ids=[*RIGHT, *WRONG])
def test_answers_pass_or_fail(sandbox: Sandbox, text: str, right: bool) -> None:
    score = answered(sandbox, text)
    assert score.correct == right, score


@pytest.mark.parametrize(("prompt", "text", "right"), cases("prompts"))
def test_answers_to_other_prompts(sandbox: Sandbox, prompt: str, text: str, right: bool) -> None:
    score = answered(sandbox, text, PROMPTS[prompt], HALVES if prompt == "HELPED" else TESTS)
    assert score.correct == right, score


PIECES = st.sampled_from(
    [
        *(DEF, LOOP, BAD, PROMPT, BOM, NBSP, "\n", "\t", "\r\n", "\0", "\f", "\\", "\ud800"),
        *("```", "```python", "````", "~~~", "[PYTHON]", "</code>", ">>> ", '"""', "'", "(", "@a"),
        *("    ", "total", "total = ", "return", "else:", "if x:", "class S:", "# x", "It's it."),
        "from __future__ import (",
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join))
def test_any_text_is_read_and_always_alike(text: str) -> None:
    code = extract_code(text, "total")
    assert code == extract_code(text, "total")
    if code is not None:
        program = complete(code, PROMPT, "total")
        assert program == complete(code, PROMPT, "total")
        fault(program)


@given(st.sampled_from([DEF, BAD]), st.text(st.characters(codec="ascii", exclude_characters="\r")))
def test_a_comment_is_no_part_of_what_code_does(function: str, comment: str) -> None:
    lines = "".join(f"# {line}\n" for line in comment.split("\n"))
    code = extract_code(f"```python\n{lines}{function}```", "total")
    assert code is not None
    assert code.endswith(function.rstrip())


HOSTILE = {
    "prose": "it's the sum (of\n" * 6000,
    "quotes": '"""\nx y\n' * 6000,
    "lines that go on": "a +\\\n" * 10_000,
    "brackets": "(\n" * 10_000,
    "decorators": "@a\n" * 10_000,
    "fences in one line": "``` " * 25_000,
    "fences in lines": "x ```python y\n" * 7000,
    "headers": "if x:\n" * 10_000,
    "stairs": "".join(" " * n + "x y\n" for n in range(440)),
    "broken classes": "class S:\n  def f(self: x\n" * 4000,
    "one long sum": "1" + "+1" * 50_000,
    "brackets without end": "(" * 100_000,
    "signs": ">>> x y\n" * 10_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_parsed_grows_with_the_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0

    def counted(source: str, partial: bool = False) -> ast.Module:
        nonlocal parsed
        parsed += len(source)
        return parse(source, partial)

    monkeypatch.setattr(stretches, "parse", counted)
    extract_code(text, "total")
    assert parsed <= 60 * len(text)


def test_a_function_is_found_in_a_long_answer() -> None:
    prose = "It's the sum (of all), and so on.\n" * 3000
    assert extract_code(f"{prose}\n{DEF}\n{prose}", "total") == DEF.rstrip()
    long = "x = 1\n" * 9000
    assert extract_code(f"```python\n{long}{DEF}```", "total") == f"{long}{DEF}".rstrip()


@pytest.mark.parametrize("answer", [DEF, f"```python\n{DEF}```", LOOP, LOOP.strip()])
@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        f"Complete this function:\n\n{PROMPT}\nAnswer with one block.",
        f"```python\n{PROMPT}```",
        f"from __future__ import annotations\n\n{PROMPT}",
        PROMPT[: PROMPT.index('    """')],
        PROMPT.replace("    ", "  "),
        PROMPT.replace("    ", "\t"),
        f"import functools\n\n{PROMPT}".replace("def total", "@functools.cache\ndef total"),
    ],
)
def test_prompts_of_every_form(sandbox: Sandbox, prompt: str, answer: str) -> None:
    tests = "def check(candidate):\n    assert candidate((1, 2, 3)) == 6\n"
    score = answered(sandbox, answer, prompt, tests)
    assert score.correct, score


@pytest.mark.parametrize(("function", "text", "code"), read_lines(ANSWERS / "code_read.jsonl"))
def test_the_code_shown_is_the_code_run(function: str, text: str, code: str | None) -> None:
    assert extract_code(text, function) == code


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return math.floor(2 * x)", "passed"),  # the prompt's import
        ("return x", "AssertionError"),
        ("return None", "AssertionError"),
        ("import os; os._exit(0)", "left in the middle"),
        ("raise SystemExit(0)", "left in the middle"),
        ("while True: pass", "timed out"),
        ("return 2 * y", "NameError: name 'y' is not defined"),
        ("return 2 *", "SyntaxError"),
    ],
)
def test_the_reason_says_how_it_ended(sandbox: Sandbox, body: str, reason: str) -> None:
    answer = f"```python\ndef double(x):\n    {body}\n```"
    score = score_code(sandbox, answer, DOUBLE, "double", DOUBLE_TESTS, Limits(seconds=1))
    assert score.correct == (reason == "passed")
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
    score = score_code(sandbox, answer, DOUBLE, "double", DOUBLE_TESTS, Limits(seconds=2))
    assert not score.correct


@pytest.mark.parametrize(
    ("answer", "prompt", "report"),
    [
        (f"```python\n{GOOD}\n```", DOUBLE, "2 of 2 examples pass."),
        (
            "```python\ndef double(x):\n    return x + 2\n```",
            DOUBLE,
            "1 of 2 examples pass. `double(-1)` should give -2: gives 1",
        ),
        ("nothing", DOUBLE, "no code found."),
        (GOOD, "def double(x):\n    pass\n", "no examples"),
        (GOOD, "Write a poem.", "names no function"),
        *((answer, PROSE, "1 of 1 examples pass.") for answer in (DEF, LOOP, f"{LOOP}```")),
    ],
)
def test_the_examples_report(sandbox: Sandbox, answer: str, prompt: str, report: str) -> None:
    assert report in public_report(sandbox, answer, prompt)


def test_examples_are_found() -> None:
    assert examples(DOUBLE, "double") == [("double(2)", "4"), ("double(-1)", "-2")]
    assert examples('def f(x):\n    """\n    >>> f(1)\n    about one\n    """', "f") == []


@pytest.mark.parametrize(
    ("n", "right", "k"), [(1, 0, 1), (1, 1, 1), (4, 2, 2), (5, 1, 3), (6, 6, 2)]
)
def test_pass_at_k_is_the_share_of_all_draws(n: int, right: int, k: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_too_few() -> None:
    for n, right, k in ((2, 1, 3), (2, 3, 1), (2, 1, 0)):
        with pytest.raises(UsageError, match=f"pass@{k} needs"):
            pass_at_k(n, right, k)
