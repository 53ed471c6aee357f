"""Answers as models write them: the code in them is found, and what is wrong stays wrong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring import stretches
from kvcomm.tasks.scoring.code import public_report, score_code
from kvcomm.tasks.scoring.parsing import fault, parse
from kvcomm.tasks.scoring.program import complete, extract_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox

PROMPT = '''from typing import List


def total(xs: List[int]) -> int:
    """ Sum of a list.
    >>> total([1, 2])
    3
    """
'''
TESTS = """

METADATA = {}


def check(candidate):
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert candidate([-1, 5]) == 4
"""
DEF = "def total(xs):\n    return sum(xs)\n"
BAD = "def total(xs):\n    return len(xs)\n"
LOOP = "    r = 0\n    for x in xs:\n        r += x\n    return r\n"
ZWSP, BOM, NBSP = "\u200b", "\ufeff", "\u00a0"


def read(name: str) -> dict[str, str]:
    """The answers of a file, each under a line `=== what is special about it`."""
    text = (Path(__file__).parent / "answers" / name).read_text(encoding="utf-8")
    parts = (part.split("\n", 1) for part in text.removeprefix("=== ").split("\n=== "))
    return {title: answer.removesuffix("\n") for title, answer in parts}


SIGNS = {
    "Windows line ends": f"Here:\n\n{DEF}\nIt sums.\n".replace("\n", "\r\n"),
    "no line end": DEF.rstrip(),
    "body of tabs": LOOP.replace("    ", "\t"),
    "fenced body of tabs": "```python\n" + LOOP.replace("    ", "\t") + "```",
    "a byte order mark": f"{BOM}{DEF}",
    "a byte order mark before an import": f"{BOM}import math\n\n{DEF.replace('sum', 'math.fsum')}",
    "an invisible space before the function": f"{ZWSP}{DEF}",
    "an invisible space before the fence": f"{ZWSP}```python\n{DEF}{ZWSP}```",
    "an invisible space in the code": DEF.replace("return", f"return{ZWSP}"),
    "spaces that do not break": DEF.replace(" ", NBSP),
    "an emoji of several signs": f'NAME = "\U0001f468\u200d\U0001f469"\n\n{DEF}',
}
RIGHT = {**read("right.txt"), **SIGNS}
WRONG = read("wrong.txt")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT.keys())
def test_right_answers_pass(sandbox: Sandbox, text: str) -> None:
    score = score_code(sandbox, text, PROMPT, "total", TESTS, Limits(seconds=5))
    assert score.correct, score


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_fail(sandbox: Sandbox, text: str) -> None:
    score = score_code(sandbox, text, PROMPT, "total", TESTS, Limits(seconds=5))
    assert not score.correct, score


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


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RIGHT["a list behind"], DEF.rstrip()),
        (RIGHT["[PYTHON]"], DEF.rstrip()),
        (RIGHT["function in a fence, indented"], DEF.rstrip()),
        (RIGHT["body, def"], "    return sum(xs)\n\ndef main():\n    print(total([1]))"),
        (RIGHT["a use behind that is not run"], DEF.rstrip()),
        (RIGHT["an import that is not there and not needed"], DEF.rstrip()),
        (WRONG["a function that is broken"], "def total(xs):\n    x = = 3\n    return sum(xs)"),
        (WRONG["the right function is in a string"], f'GOOD = """\n{DEF}"""\n\n{BAD}'.rstrip()),
    ],
)
def test_the_code_shown_is_the_code_run(text: str, code: str) -> None:
    assert extract_code(text, "total") == code


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
    score = score_code(sandbox, answer, prompt, "total", tests, Limits(seconds=5))
    assert score.correct, score


@pytest.mark.parametrize("answer", [DEF, LOOP, f"{LOOP}```"])
def test_the_report_reads_tasks_that_go_on_in_prose(sandbox: Sandbox, answer: str) -> None:
    task = f"{PROMPT}\n\nAnswer with the complete function in one ```python block."
    assert public_report(sandbox, answer, task) == "1 of 1 examples pass."
