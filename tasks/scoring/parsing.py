"""What Python's parser says of code: its syntax tree, whether it is whole, its names."""

from __future__ import annotations

import ast
import symtable
import threading
import warnings
from codeop import PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
from collections.abc import Iterator
from contextlib import contextmanager

BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)
_one_at_a_time = threading.Lock()


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
