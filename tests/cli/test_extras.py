"""A package that is missing is named before a model is loaded, with what to type."""

import importlib.util

import pytest

from kvcomm.engine.local import load
from kvcomm.errors import UsageError
from kvcomm.tasks import graders

MODEL = ("--model", "random:llama-tiny")


def no_sandbox(_: bool) -> None:
    raise UsageError("no sandbox works here")


@pytest.mark.parametrize(
    ("missing", "extra", "command"),
    [
        ("math_verify", "tasks", ("eval", "math-mini", "--limit", "1")),
        ("math_verify", "tasks", ("eval", "math-mini", "--graph", "chain", "--agents", "2")),
        ("bm25s", "tasks", ("eval", "rag-mini", "--limit", "1")),
        ("datasets", "hf", ("eval", "musique")),
        ("ray", "ray", ("eval", "code-mini", "--engine", "ray")),
        ("ray", "ray", ("run", "At what?", "--engine", "ray")),
        ("httpx", "serve", ("run", "At what?", "--engine", "openai", "--base-url", "http://x/v1")),
        ("", "", ("eval", "code-mini", "--limit", "1")),
        ("matplotlib", "plot", ("bench", "ttft", "--plot", "p.png")),
    ],
)
def test_what_is_missing_is_named_before_a_model_is_loaded(
    cli, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str, command: tuple[str, ...]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name)
    )
    if not missing:
        monkeypatch.setattr(graders, "find_sandbox", no_sandbox)
    loaded: list[object] = []
    monkeypatch.setattr(load, "build_engine", lambda *args: [loaded.append(args)])
    ended = cli(*command, *MODEL)
    assert ended.code == 2, ended.err
    assert loaded == []
    says = f'pip install "kvcomm[{extra}]"' if extra else "no sandbox works here"
    assert says in " ".join(ended.err.split())
