"""The code of an answer: made a whole program with the task's prompt, run, counted as pass@k."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox
from kvcomm.tasks.scoring.score import Score, right_or_wrong
from kvcomm.tasks.scoring.stretches import BROKEN, Stretch, bound, fault, missing, parse, stretches

# Before lines of a session, or of a quote.
SIGNS = re.compile(r"^[ \t]*(?:>>>|\.\.\.:?|In \[\d+\]:|>) ?", re.MULTILINE)
# What it imports has no name that code could lack.
ANYWAY = re.compile(r"from\s+(?:__future__\b|.*\*)")
INDENT = re.compile(r"^[ \t]+(?=\S)", re.MULTILINE)
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
DEFINING = (*DEFINITION, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
FUNCTION, BOUND, BODY, OTHER, NOTHING = 4, 3, 2, 1, 0  # what code is to its task, best first


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
    return right_or_wrong(ran.finished, code, "passed" if ran.finished else f"failed: {ran.reason}")


def examples(prompt: str, entry_point: str) -> list[tuple[str, str]]:
    """The `>>>` examples of a prompt's docstring that call the function, and what they give."""
    pattern = re.compile(r"^[ \t]*>>>[ \t]*(.+)\n[ \t]*(?!>>>)(\S.*)$", re.MULTILINE)
    found = []
    for call, wanted in pattern.findall(prompt):
        with suppress(SyntaxError, ValueError):
            ast.parse(call, mode="eval")
            ast.literal_eval(wanted.strip())
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


def extract_code(text: str, entry_point: str) -> str | None:
    """The code of an answer; None where there is none.

    Of all stretches of Python the last that defines `entry_point`, else the last that binds it in
    another way, else the last that returns, as a function's body does, else the last. What it lacks
    and others import or define stands before it, or behind it where it is a body.
    """
    found, broken = stretches(text)
    kind, best = _best(found, entry_point)
    if kind < BOUND and SIGNS.search(text):
        unsigned, _ = stretches(SIGNS.sub("", text))
        if (other := _best(unsigned, entry_point))[0] >= BOUND or kind == NOTHING:
            found, (kind, best) = unsigned, other
    if kind < BOUND:  # a function that was meant is not mended with a part found elsewhere
        meant = [code for code in broken if re.match(_header(entry_point), code.lstrip())]
        if meant or (broken and kind == NOTHING):
            return (meant or broken)[-1]
    if kind == NOTHING:
        return None
    if kind >= BOUND:
        code = found[best].code
        others = found[:best] + found[best + 1 :]
        return "\n\n".join([*_helpers(others, code, entry_point), code])
    tail = list(takewhile(lambda stretch: stretch.follows, found[best + 1 :]))
    others = found[:best] + found[best + 1 + len(tail) :]
    code = "\n\n".join([found[best].text, *(stretch.text for stretch in tail)])
    body = _as_body(code, "    ")
    helpers = _helpers(others, f"def {entry_point}():\n{body}", entry_point)
    return "\n\n".join([body, *helpers]) if helpers else code


def complete(code: str, prompt: str, entry_point: str) -> str:
    """A whole program: code that binds the function behind the prompt's head, else its body.

    It is no program, as `fault` says, where the code is broken or does not fit.
    """
    start, end = _function(prompt, entry_point)
    head = prompt[:start]
    if fault(head):  # prose is there: a task, or a fence
        parts = (part for stretch in stretches(head)[0] for part in _definitions(stretch.code))
        head = "\n\n".join(parts)
    if entry_point in bound(code):
        return _futures_first(f"{head}\n{code}")
    own = INDENT.match(code)
    indents = [*([own[0]] if own else []), *INDENT.findall(prompt[start:end]), "    "]
    programs = [
        _futures_first(f"{head}\n{stub.rstrip()}\n{_as_body(code, indent)}")
        for stub in dict.fromkeys([prompt[start:], prompt[start:end]])
        for indent in dict.fromkeys(indents)
    ]
    return next((program for program in programs if not fault(program)), programs[0])


def _best(found: Sequence[Stretch], name: str) -> tuple[int, int]:
    """The best kind of code among stretches, and the last of that kind."""
    kinds = [(_kind(stretch, name), at) for at, stretch in enumerate(found)]
    return max(kinds, default=(NOTHING, -1))


def _kind(stretch: Stretch, name: str) -> int:
    if name in bound(stretch.code):
        nodes = [node for node in parse(stretch.code).body if isinstance(node, DEFINITION)]
        statements = [node.body for node in nodes if node.name == name]
        if not statements:
            return BOUND
        # What only fills a place, as a docstring, `...` and `pass` do, defines nothing.
        says = [s.value if isinstance(s, ast.Expr) else s for body in statements for s in body]
        return OTHER if all(isinstance(one, ast.Constant | ast.Pass) for one in says) else FUNCTION
    if not stretch.alone:
        return NOTHING
    return BODY if fault(stretch.code) else OTHER


def _helpers(found: Sequence[Stretch], code: str, name: str) -> list[str]:
    """The statements that import or define what the code lacks; none of a draft of `name`."""
    needed, helpers = missing(code), list[str]()
    own = [stretch.code for stretch in found if name not in bound(stretch.code)]
    for part in reversed([part for other in own for part in _definitions(other)]):
        if needed & bound(part) or ANYWAY.match(part):
            helpers.insert(0, part)
            needed |= missing(part)
    return helpers


def _definitions(code: str) -> list[str]:
    """The statements that only import or define."""
    try:
        statements = parse(code).body
    except BROKEN:
        return []
    found = []
    for statement in filter(_defines, statements):
        first = min(node.lineno for node in [statement, *getattr(statement, "decorator_list", [])])
        found.append("\n".join(code.split("\n")[first - 1 : statement.end_lineno]))
    return found


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Try):
        caught = [inner for handler in statement.handlers for inner in handler.body]
        return all(map(_defines, [*statement.body, *caught, *statement.orelse]))
    return isinstance(statement, DEFINING)


def _as_body(code: str, indent: str) -> str:
    """Code as a function's body: its first lines, up to one indented less, have this indentation.

    Lines that have it already stay as they are, those of strings too.
    """
    own = match[0] if (match := INDENT.match(code)) else ""
    if own == indent:
        return code
    lines = code.split("\n")
    inside = re.compile(rf"{own}|\s*(?:#|$)")
    body = list(takewhile(inside.match, lines))
    body = [indent + line.removeprefix(own) if line.strip() else line for line in body]
    return "\n".join([*body, *lines[len(body) :]])


def _function(prompt: str, name: str) -> tuple[int, int]:
    """Where the function begins in the prompt and where the prompt goes on behind it."""
    start = re.search(rf"^(?:@.*\n)*{_header(name)}", prompt, re.MULTILINE)
    if start is None:
        return len(prompt), len(prompt)
    behind = re.compile(r"\n(?=[^\s)\]}])").search(prompt, start.end())
    return start.start(), behind.start() if behind else len(prompt)


def _header(name: str) -> str:
    return rf"(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b"


def _futures_first(source: str) -> str:
    """The imports from `__future__` before all else, where Python wants them."""
    try:
        statements = parse(source).body
    except BROKEN:
        return source
    first, lines = list[str](), source.split("\n")
    for statement in statements:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            span = slice(statement.lineno - 1, statement.end_lineno)
            first += lines[span]
            lines[span] = [""] * len(lines[span])
    return "\n".join([*first, *lines])
