"""A package that is missing is named before a model is loaded, with what to type."""

from __future__ import annotations

import importlib.util

import pytest

from kvcomm.engine.local import load
from kvcomm.errors import UsageError
from kvcomm.extras import has, need

MODEL = ("--model", "random:llama-tiny")


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
        ("matplotlib", "plot", ("bench", "ttft", "--plot", "p.png")),
    ],
)
def test_a_missing_package_is_named_before_a_model_is_loaded(
    cli, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str, command: tuple[str, ...]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name)
    )
    loaded: list[object] = []
    monkeypatch.setattr(load, "build_engine", lambda *args: loaded.append(args))
    ended = cli(*command, *MODEL)
    assert ended.code == 2, ended.err
    assert loaded == []
    assert f'pip install "kvcomm[{extra}]"' in " ".join(ended.err.split())


def test_a_suite_of_code_needs_a_sandbox_before_a_model_is_loaded(
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvcomm.tasks import graders

    def none(allowed: bool) -> None:
        raise UsageError("no sandbox works here")

    monkeypatch.setattr(graders, "find_sandbox", none)
    loaded: list[object] = []
    monkeypatch.setattr(load, "build_engine", lambda *args: loaded.append(args))
    ended = cli("eval", "code-mini", "--limit", "1", *MODEL)
    assert ended.code == 2
    assert "no sandbox works here" in ended.err
    assert loaded == []


def test_the_error_names_the_package_and_the_extra() -> None:
    need("json", "none")
    assert has("json")
    with pytest.raises(UsageError, match=r'no-such is not installed: pip install "kvcomm\[tui\]"'):
        need("no_such", "tui")
