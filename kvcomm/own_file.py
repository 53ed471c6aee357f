"""Objects from a user's Python file, `FILE.py` or `FILE.py:NAME`: a graph, a suite, a policy.

The file is run: it is code by design.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeGuard, TypeVar

from kvcomm.errors import KvcommError, UsageError
from kvcomm.trace.text import listed, shorten

T = TypeVar("T")
# The files that were run as modules: no other process can import them.
own_modules: list[ModuleType] = []


@dataclass(frozen=True)
class Wanted(Generic[T]):
    """What is looked for in a file: its type, what people call it, and a line that makes one."""

    kind: type[T]
    noun: str
    example: str

    def has(self, value: object) -> TypeGuard[T]:
        """Whether `value` is one. A class is none: it is called for one."""
        return isinstance(value, self.kind) and not isinstance(value, type)


def is_own_file(spec: str) -> bool:
    """Whether an option names a file rather than something ready-made."""
    return _split(spec) is not None


def load_own(spec: str, wanted: Wanted[T]) -> T:
    """The object of `FILE.py[:NAME]`; NAME may be a function without arguments that returns one.

    Raises `UsageError` for a file that is missing, does not import, or does not say which object.
    """
    path, name = own_path(spec, wanted.noun)
    module = _imported(path, wanted.noun)
    noun, kind = wanted.noun, wanted.kind.__name__
    known = {key: value for key, value in vars(module).items() if wanted.has(value)}
    if name:
        found = getattr(module, name, None)
        if callable(found) and not wanted.has(found):
            try:
                found = found()
            except (Exception, SystemExit) as error:
                raise _broken(path, noun, error) from None
        if wanted.has(found):
            return found
        if hasattr(module, name):
            raise UsageError(
                f"`{name}` of {path} is no {kind} but {type(found).__name__}: name a {noun}, or a "
                "function without arguments that returns one"
            )
        here = f"it has {listed(known)}" if known else f"it holds no {noun}"
        raise UsageError(f"{path} has no `{name}`: {here}")
    distinct = list({id(found): found for found in known.values()}.values())
    if not distinct:
        article = "an" if kind[0] in "AEIOU" else "a"
        raise UsageError(
            f"{path} holds no {noun}: assign {article} {kind} to a module-level name, for example "
            f"`{wanted.example}`, or name a function with FILE.py:NAME"
        )
    if len(distinct) > 1:
        count = f"{len(distinct)} {noun.removesuffix('y')}{'ies' if noun.endswith('y') else 's'}"
        raise UsageError(
            f"{path} holds {count}: say which, {path}:NAME with one of {listed(known)}"
        )
    return distinct[0]


def own_path(spec: str, noun: str) -> tuple[Path, str]:
    """The file and the name of `FILE.py[:NAME]`. Raises `UsageError` where there is no file."""
    parts = _split(spec)
    if parts is None:
        raise UsageError(f"{spec!r} is no {noun} file: write FILE.py or FILE.py:NAME")
    if not parts[0].is_file():
        raise UsageError(f"{noun} file {str(parts[0])!r} does not exist")
    return parts


def _split(spec: str) -> tuple[Path, str] | None:
    if spec.endswith(".py"):
        return Path(spec), ""
    file, colon, name = spec.rpartition(":")
    return (Path(file), name) if colon and file.endswith(".py") else None


def _imported(path: Path, noun: str) -> ModuleType:
    """Run the file as a module; files beside it can be imported from it, as in a script."""
    name = f"kvcomm_{noun}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    own_modules.append(module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _broken(path, noun, error) from None
    finally:
        sys.path.pop(0)
    return module


def _broken(path: Path, noun: str, error: BaseException) -> UsageError:
    """Where in the user's file it went wrong, and what Python or kvcomm says of it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [one.lineno for one in frames if Path(one.filename).resolve() == path.resolve()]
    line, what = lines[-1] if lines else None, str(error)
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    where = f"{path}, line {line}" if line else str(path)
    if not isinstance(error, KvcommError):
        what = f"{type(error).__name__}: {what}" if what else type(error).__name__
    return UsageError(f"{noun} file does not import: {where}: {shorten(what, 400)}")
