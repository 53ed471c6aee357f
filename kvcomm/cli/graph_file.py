"""Graphs from a user's Python file: `FILE.py` or `FILE.py:NAME`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from kvcomm.errors import KvcommError, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.trace.text import listed, shorten


def is_graph_file(spec: str) -> bool:
    """Whether `--graph` names a file rather than a ready-made graph."""
    return _split(spec) is not None


def load_graph_file(spec: str) -> AgentGraph:
    """The graph of `FILE.py[:NAME]`; NAME may be a function without arguments that returns one.

    Raises `UsageError` for a file that is missing, does not import, or does not say which graph.
    """
    parts = _split(spec)
    if parts is None:
        raise UsageError(f"{spec!r} is no graph file: write FILE.py or FILE.py:NAME")
    path, name = parts
    if not path.is_file():
        raise UsageError(f"graph file {str(path)!r} does not exist")
    module = _imported(path)
    return _named(path, module, name) if name else _only(path, module)


def _split(spec: str) -> tuple[Path, str] | None:
    if spec.endswith(".py"):
        return Path(spec), ""
    file, colon, name = spec.rpartition(":")
    return (Path(file), name) if colon and file.endswith(".py") else None


def _imported(path: Path) -> ModuleType:
    """Run the file as a module; files beside it can be imported from it, as in a script."""
    name = f"kvcomm_graph_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _broken(path, error) from None
    finally:
        sys.path.pop(0)
    return module


def _broken(path: Path, error: BaseException) -> UsageError:
    """Where in the user's file it went wrong, and what Python or kvcomm says of it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{path}, line {line}" if line else str(path)
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    if not isinstance(error, KvcommError):
        what = f"{type(error).__name__}: {what}" if what else type(error).__name__
    return UsageError(f"graph file does not import: {where}: {shorten(what, 400)}")


def _named(path: Path, module: ModuleType, name: str) -> AgentGraph:
    found = getattr(module, name, None)
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise _broken(path, error) from None
    if isinstance(found, AgentGraph):
        return found
    if not hasattr(module, name):
        graphs = _graphs(module)
        here = f"it has {listed(graphs)}" if graphs else "it holds no graph"
        raise UsageError(f"{path} has no `{name}`: {here}")
    raise UsageError(
        f"`{name}` of {path} is no AgentGraph but {type(found).__name__}: name a graph, or a "
        "function without arguments that returns one"
    )


def _only(path: Path, module: ModuleType) -> AgentGraph:
    graphs = _graphs(module)
    distinct = {id(graph): graph for graph in graphs.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if not distinct:
        raise UsageError(
            f"{path} holds no graph: assign an AgentGraph to a module-level name, for example "
            "`graph = chain(solver(), editor())`, or name a function with FILE.py:NAME"
        )
    raise UsageError(
        f"{path} holds {len(distinct)} graphs: say which, {path}:NAME with one of {listed(graphs)}"
    )


def _graphs(module: ModuleType) -> dict[str, AgentGraph]:
    return {key: value for key, value in vars(module).items() if isinstance(value, AgentGraph)}
