"""Code of an answer, run with tests in a sandbox and counted as pass@k."""

from __future__ import annotations

import ast
import math
import re

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.parsing import fault
from kvcomm.tasks.scoring.program import complete, extract_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox
from kvcomm.tasks.scoring.score import Score, right_or_wrong


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
    program = complete(code, prompt, entry_point)
    if why := fault(program):  # what is not whole could swallow the tests
        return right_or_wrong(False, code, f"failed: {why}")
    ran = sandbox.run(f"{program}\n\n{tests}\n\ncheck({entry_point})\n", limits)
    if ran.finished:
        return right_or_wrong(True, code, "passed")
    return right_or_wrong(False, code, f"failed: {ran.reason}")


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
