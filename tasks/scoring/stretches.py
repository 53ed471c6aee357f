"""Stretches of Python in a text of prose, fences and code, found by Python's own parser.

Fences are no more than lines at which code may end: no line of a fence is Python unless it stands
in a string, so the parser tells the two apart, whatever fence is missing, nested or misplaced.
"""

from __future__ import annotations

import ast
import re
import symtable
import threading
import warnings
from codeop import PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)
_one_at_a_time = threading.Lock()
# A fence (with its language, or before code on its own line), a tag, the end of a generation.
MARK = re.compile(
    r"(?:`{3,}|~{3,})(?:[^\s`]*[ \t]*$|[ \t]*(?:python|py)[\d.]*\b|)"
    r"|</?[a-z][\w-]{0,30}(?:\s[^<>\n]*)?>|\[/?(?:code|python|py|answer|solution|begin|done)\]"
    r"|<\|[^|\n]*\|>",
    re.IGNORECASE,
)
BLOCK = re.compile(r"\s*(?:async|class|def|for|if|match|try|while|with)\b")
CONTINUED = re.compile(r"\s*(?:(?:elif|else|except|finally)\b|[)\]}#])")
SENTENCE = re.compile(r"[A-Z][\w ,'-]*[.:!]\s*")
COMMENT = re.compile(r"\s*#")
# Signs that copying leaves in code, where Python refuses them.
INVISIBLE = {0xFEFF: None, 0x200B: None, 0x2060: None, 0xA0: " ", 0x202F: " "}


@dataclass(frozen=True)
class Stretch:
    """Lines that follow each other and are statements of one indentation."""

    lines: tuple[str, ...]
    indent: str
    follows: bool  # on another stretch, of another indentation, with nothing between
    alone: bool  # begins at a boundary, so that no broken code stands at its own level before it

    @property
    def text(self) -> str:
        """The lines as they stand."""
        return "\n".join(self.lines).strip("\n").rstrip()

    @property
    def code(self) -> str:
        """The lines from column 0 on."""
        lines = [line.removeprefix(self.indent) for line in self.lines]
        return "\n".join(lines).strip("\n").rstrip()


def stretches(text: str) -> tuple[list[Stretch], list[str]]:
    """All code of a text, in order; and what begins like code and is broken."""
    reader = _Reader(text)
    return reader.found, reader.broken


class _Reader:
    """Reads statement after statement; a line that begins none is prose.

    Statements are parsed one by one, so that the time grows with the text and not with its square;
    what hostile texts can make of it is bounded by `_left`, the characters that may be parsed.
    """

    def __init__(self, text: str) -> None:
        text = text.replace("\r\n", "\n").replace("\r", "\n").translate(INVISIBLE)
        self.lines = text.split("\n")
        self.found: list[Stretch] = []
        self.broken: list[str] = []
        self._left = 20 * len(text) + 10_000
        at, follows = 0, False
        while at < len(self.lines):
            if self._blank(at):
                at += 1
                continue
            end = at if self._mark(at) else self._stretch(at, follows)
            follows = end > at
            if end == at and not self._mark(at) and self._code_like(at):
                end = self._next(at, _indent(self.lines[at]))
                self.broken.append("\n".join(self.lines[at:end]).rstrip())
            at = max(end, at + 1)

    def _stretch(self, start: int, follows: bool) -> int:
        """Read a stretch from a line on; where it ends, the same line where none begins."""
        alone = self._alone(start)
        end = self._statement(start)
        if end == start and not follows:
            end = self._statement_stripped(start)
        if end == start:
            return start
        indent, at = _indent(self.lines[start]), end
        while at < len(self.lines) and not self._mark(at):
            if self._blank(at):
                at += 1
            elif _indent(self.lines[at]) == indent and (after := self._statement(at)) > at:
                at = end = after
            else:
                # Its own level goes on with what is no code.
                alone &= not indent or len(_indent(self.lines[at])) < len(indent)
                break
        lines = tuple(self.lines[start:end])
        if any(line.strip() and not COMMENT.match(line) for line in lines):
            self.found.append(Stretch(lines, indent, follows, alone))
        return end

    def _statement(self, at: int) -> int:
        """Behind the statement that begins at a line, and whatever had to be read with it.

        A chunk of lines, up to the next one that is not indented more, is parsed; with twice as
        many chunks as long as it is the beginning of something; without what is wrong in it.
        """
        indent = _indent(self.lines[at])
        end, more = self._next(at, indent), 1
        while end > at:
            try:
                self._keep(at, end, self._parse(at, end, partial=more > 0))
                return end
            except BROKEN as error:
                if more and incomplete(error):
                    longer = self._next(end, indent, more)
                    more, end = (2 * more if longer > end else 0), longer
                    continue
                wrong = at + (getattr(error, "lineno", None) or 1) - 1 - bool(indent)
                wrong = max(at, min(wrong, end - 1))
            more = 0
            if self._left > 0 and self._isolate(wrong):
                end = wrong + (not self._mark(wrong))
                continue
            while wrong > at and not self._mark(wrong) and not self._flush(wrong, indent):
                wrong -= 1
            end = wrong
        return at

    def _statement_stripped(self, at: int) -> int:
        """The same for code that lost the indentation of its first line, which is given back."""
        line = self.lines[at]
        rest = self.lines[at + 1 : self._next(at, _indent(line))]
        indents = [_indent(other) for other in rest if other.strip()]
        if not indents or self._mark(at):
            return at
        self.lines[at] = min(indents, key=len) + line.lstrip()
        end = self._statement(at)
        if end == at:
            self.lines[at] = line
        return end

    def _parse(self, at: int, end: int, partial: bool = False) -> list[ast.stmt]:
        source = "\n".join(self.lines[at:end])
        self._left -= len(source)
        if self._left < 0:
            raise SyntaxError("too much to read")
        if not _indent(self.lines[at]):
            return parse(source, partial).body
        block = parse(f"if 1:\n{source}", partial).body[0]
        return block.body if isinstance(block, ast.If) else []

    def _keep(self, at: int, end: int, statements: list[ast.stmt]) -> None:
        """Blank lines that are words of prose and parse only by chance."""
        if statements and all(map(_idle, statements)):
            self.lines[at:end] = [_indent(self.lines[at])] * (end - at)

    def _isolate(self, at: int) -> bool:
        """Give the first mark inside a line a line of its own; False where it has none."""
        line = self.lines[at]
        mark = MARK.search(line)
        if mark is None or self._mark(at):
            return False
        parts = [line[: mark.start()].rstrip(), mark[0], line[mark.end() :].removeprefix(" ")]
        self.lines[at : at + 1] = [part for part in parts if part.strip()]
        return True

    def _next(self, at: int, indent: str, count: int = 1) -> int:
        """The next line, or the one `count` further, that may begin a statement so indented."""
        for other in range(at + 1, len(self.lines)):
            begins = self._flush(other, indent) and not CONTINUED.match(self.lines[other])
            if begins or self._mark(other):
                count -= 1
                if not count:
                    return other
        return len(self.lines)

    def _flush(self, at: int, indent: str) -> bool:
        return not self._blank(at) and len(_indent(self.lines[at])) <= len(indent)

    def _blank(self, at: int) -> bool:
        return not self.lines[at].strip()

    def _mark(self, at: int) -> bool:
        return MARK.fullmatch(self.lines[at].strip()) is not None

    def _code_like(self, at: int) -> bool:
        """Whether what is not code was meant to be: its block goes with it."""
        if BLOCK.match(self.lines[at]):
            return True
        try:
            self._parse(at, at + 1, partial=True)
        except BROKEN as error:
            return incomplete(error)
        return False

    def _alone(self, at: int) -> bool:
        """Whether a body may begin here: behind a mark, a sentence, or a blank line.

        Behind a blank line what stands before must be indented less; with none it may be the head
        of a function in another language.
        """
        before = at - 1
        while before >= 0 and self._blank(before):
            before -= 1
        if before < 0 or self._mark(before) or SENTENCE.fullmatch(self.lines[before]):
            return True
        less = len(_indent(self.lines[before])) < len(_indent(self.lines[at]))
        return less and before < at - 1


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _idle(statement: ast.stmt) -> bool:
    """Whether a statement does nothing, as the prose `Explanation` or `Complexity: n` does."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    if not isinstance(statement, ast.Expr):
        return False
    if isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
        return False
    acts = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    return not any(isinstance(node, acts) for node in ast.walk(statement))


def parse(source: str, partial: bool = False) -> ast.Module:
    """The syntax tree. Raises one of `BROKEN`; of a beginning, when `partial`, as `incomplete`."""
    flags = ast.PyCF_ONLY_AST | (PyCF_ALLOW_INCOMPLETE_INPUT if partial else 0)
    with _no_warnings():
        tree = compile(source, "answer", "exec", flags, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def incomplete(error: BaseException) -> bool:
    """Whether partial code was the beginning of something."""
    return "incomplete input" in str(error)


def fault(source: str) -> str:
    """Why code is no whole program: it does not parse, or a statement may not stand where it does.

    "" where it is one.
    """
    try:
        with _no_warnings():
            compile(source, "answer", "exec", dont_inherit=True)
    except BROKEN as error:
        return f"{type(error).__name__}: {getattr(error, 'msg', error)}"
    return ""


def bound(source: str) -> set[str]:
    """The names that a whole program binds on its top level; none where it is no whole program."""
    if fault(source):
        return set()
    symbols = _table(source).get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def missing(source: str) -> set[str]:
    """The names that code reads from its top level without binding them there: builtins as well."""
    if fault(source):
        return set()
    top = _table(source)
    tables, read = [top], set()
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                read.add(symbol.get_name())
    return read - {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}


def _table(source: str) -> symtable.SymbolTable:
    with _no_warnings():
        return symtable.symtable(source, "answer", "exec")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Warnings about a model's code are not ours. Python's filters are the whole process's."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
