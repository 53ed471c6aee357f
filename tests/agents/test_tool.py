"""Tools: what they may be called and what they may return."""

from __future__ import annotations

from typing import Any

import pytest

from kvcomm.agents import Tool
from kvcomm.errors import KvcommError, UsageError


def test_a_tool_returns_one_text_under_its_own_name() -> None:
    assert Tool("clock", lambda texts: "noon").texts("noon") == {"clock": "noon"}


def test_a_tool_with_outputs_returns_a_text_for_each() -> None:
    tool = Tool("search", lambda texts: ["x", "y"], outputs=("first", "second"))
    assert tool.texts(["x", "y"]) == {"first": "x", "second": "y"}


@pytest.mark.parametrize("found", [None, 3, ["a"], b"a"])
def test_a_tool_that_returns_no_text_is_told(found: Any) -> None:
    with pytest.raises(KvcommError, match="`clock` must return a text"):
        Tool("clock", lambda texts: "").texts(found)


@pytest.mark.parametrize("found", ["ab", ["a"], ["a", "b", "c"], ["a", 1]])
def test_as_many_texts_as_outputs(found: Any) -> None:
    with pytest.raises(KvcommError, match="`search` must return 2 texts"):
        Tool("search", lambda texts: "", outputs=("first", "second")).texts(found)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "task"},
        {"name": "a b"},
        {"outputs": ("history",)},
        {"outputs": ("a", "a")},
        {"outputs": ("search",)},
        {"max_tokens": 0},
        {"timeout_s": 0.0},
        {"retries": -1},
        {"backoff_s": -1.0},
        {"on_error": "ignore"},
        {"on_error": "fallback"},
        {"on_error": "fallback", "fallback": " "},
        {"fallback": "unused"},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Tool(**{"name": "search", "run": lambda texts: "", **fields})
