"""Data is never run: nothing in the source unpickles, evaluates or unpacks it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where running code is the purpose: programs in answers, in the sandbox; a user's own file. And
# where those programs are compiled, to see whether they are whole, and not run. Replicas run what
# their own driver sends.
RUNS = {
    "tasks/scoring/launch.py",
    "kvcomm/own_file.py",
    "tasks/scoring/stretches.py",
    "kvcomm/engine/ray.py",
    "kvcomm/engine/replica.py",
}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "zipfile", "tarfile"}
CALLS = {"eval", "exec", "compile", "__import__", "exec_module", "unpack_archive"}
SOURCES = [
    path
    for folder in ("kvcomm", "agents", "graphs", "tasks")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_symlink()
]


def dangers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            call = node.func
            if isinstance(call, ast.Name) and call.id in CALLS:
                yield call.id
            elif isinstance(call, ast.Attribute):
                # `re.compile` and `model.eval()` are something else.
                if call.attr in CALLS - {"compile", "eval", "exec"}:
                    yield call.attr
                elif ast.unparse(call) == "torch.load":
                    yield "torch.load"


def test_no_source_runs_data() -> None:
    found = {
        str(path.relative_to(ROOT)): list(dangers(path.read_text(encoding="utf-8")))
        for path in SOURCES
    }
    assert len(found) > 100
    assert {path for path, what in found.items() if what} == RUNS


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "import zipfile as z",
        "def f(x): return eval(x)",
        "exec(compile(x, 'a', 'exec'))",
        "torch.load(path, weights_only=False)",
        "spec.loader.exec_module(module)",
    ],
)
def test_what_runs_data_is_found(source: str) -> None:
    assert list(dangers(source))
