"""Code: found in an answer, run with tests in a sandbox, counted as pass@k."""

from __future__ import annotations

import ast
import math
import re

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox
from kvcomm.tasks.scoring.score import Score, right_or_wrong

FENCE = re.compile(r"(?P<indent>[ \t]*)(?:```+|~~~+)[ \t]*(?P<language>[^\s`{]*)[^`]*")
PYTHON = re.compile(r"(?:python|py)[\d.]*|", re.IGNORECASE)
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
START = re.compile(r"^(?:from\s|import\s|def\s|async\s+def\s|class\s|@)", re.MULTILINE)


def score_code(
    sandbox: Sandbox, text: str, prompt: str, entry_point: str, tests: str, limits: Limits
) -> Score:
    """Whether the code in `text` passes `check(entry_point)` of the tests.

    `prompt` is the start of the function: what it imports is there, and an answer that holds only
    the function's body is put behind it. The program must come to its end: leaving early is no
    pass.
    """
    code = extract_code(text, entry_point)
    if code is None:
        return right_or_wrong(False, "", "no code found")
    program = f"{complete(code, prompt, entry_point)}\n\n{tests}\n\ncheck({entry_point})\n"
    ran = sandbox.run(program, limits)
    if ran.finished:
        return right_or_wrong(True, code, "passed")
    return right_or_wrong(False, code, f"failed: {ran.reason}")


def extract_code(text: str, entry_point: str) -> str | None:
    """The code of an answer; None where there is none.

    Of the fenced blocks the last that defines `entry_point`, else the last of Python or of no
    language, else the last; without a fence, from the first line on that begins like code, or an
    indented text as a function's body.
    """
    blocks = fenced(text)
    defining = [code for _, code in blocks if defines(code, entry_point)]
    python = [code for language, code in blocks if PYTHON.fullmatch(language)]
    if blocks:
        return (defining or python or [code for _, code in blocks])[-1].strip("\n")
    if start := START.search(text):
        return text[start.start() :].rstrip()
    body = text.strip("\n")
    return body if body.startswith((" ", "\t")) else None


def fenced(text: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks, without the indent of their fence.

    The last may lack its end. A fence that names a language begins a block in any case.
    """
    blocks: list[tuple[str, list[str]]] = []
    indent, inside = "", False
    for line in text.split("\n"):
        fence = FENCE.fullmatch(line)
        if fence and (fence["language"] or not inside):
            blocks.append((fence["language"], []))
            indent, inside = fence["indent"], True
        elif fence:
            inside = False
        elif inside:
            blocks[-1][1].append(line.removeprefix(indent))
    return [(language, "\n".join(lines)) for language, lines in blocks]


def defines(code: str, name: str) -> bool:
    """Whether the code has a function called `name` on its top level."""
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", code, re.MULTILINE) is not None


def complete(code: str, prompt: str, entry_point: str) -> str:
    """A whole program: code that defines the function behind the prompt's head, else its body."""
    if defines(code, entry_point):
        head = prompt[: _start_of(prompt, entry_point)]
        first = "\n".join(FUTURE.findall(code))  # nothing may stand before these
        return f"{first}\n{head}\n{code if not first else FUTURE.sub('', code)}"
    body = code if code.startswith((" ", "\t")) else "\n".join(f"    {x}" for x in code.split("\n"))
    return f"{prompt.rstrip()}\n{body}"


def _start_of(prompt: str, entry_point: str) -> int:
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\s*\(", prompt, re.MULTILINE)
    return found.start() if found else len(prompt)


def examples(prompt: str, entry_point: str) -> list[tuple[str, str]]:
    """The `>>>` examples of a prompt's docstring that call the function, and what they give."""
    pattern = re.compile(r"^[ \t]*>>>[ \t]*(.+)\n[ \t]*(?!>>>)(\S.*)$", re.MULTILINE)
    found = []
    for call, wanted in pattern.findall(prompt):
        try:
            ast.parse(call, mode="eval")
            ast.literal_eval(wanted.strip())
        except (SyntaxError, ValueError):
            continue
        if f"{entry_point}(" in call:
            found.append((call.strip(), wanted.strip()))
    return found


def public_report(sandbox: Sandbox, text: str, prompt: str) -> str:
    """What the prompt's own examples give on the code of an answer, for people and agents."""
    names = re.findall(r"^(?:async\s+)?def\s+(\w+)\s*\(", prompt, re.MULTILINE)
    if not names:
        return "the task names no function to test."
    name = names[-1]
    code = extract_code(text, name)
    if code is None:
        return "no code found."
    asked = examples(prompt, name)
    program = complete(code, prompt, name)
    if not asked:
        ran = sandbox.run(program)
        return "it runs; the task has no examples." if ran.finished else f"it fails: {ran.reason}"
    lines = []
    for call, wanted in asked:
        check = f"_found = {call}\nassert _found == {wanted}, f'gives {{_found!r:.60}}'\n"
        ran = sandbox.run(f"{program}\n\n{check}", Limits(seconds=5))
        if not ran.finished:
            why = ran.reason.removeprefix("AssertionError: ")
            lines.append(f"`{call}` should give {wanted}: {why}")
    passed = f"{len(asked) - len(lines)} of {len(asked)} examples pass."
    return " ".join([passed, *lines[:3]])


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that one of `k` of `n` samples is right, of which `right` are (Chen et al. 2021).

    Raises `UsageError` for fewer samples than k.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise UsageError(f"pass@{k} needs at least {k} samples of a task, and {right} of {n} right")
    return 1 - math.comb(n - right, k) / math.comb(n, k)
