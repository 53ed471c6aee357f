"""Tools: what they may be called and what they may return."""

from typing import Any

import pytest

from kvcomm.agents import Tool
from kvcomm.errors import KvcommError, UsageError

CLOCK = Tool("clock", lambda texts: "noon")
SEARCH = Tool("search", lambda texts: ["x", "y"], outputs=("first", "second"))


def test_a_tool_returns_a_text_under_its_name_or_one_for_each_output() -> None:
    assert CLOCK.texts("noon") == {"clock": "noon"}
    assert SEARCH.texts(["x", "y"]) == {"first": "x", "second": "y"}


@pytest.mark.parametrize(
    ("tool", "found"),
    [
        *((CLOCK, found) for found in (None, 3, ["a"], b"a")),
        *((SEARCH, found) for found in ("ab", ["a"], ["a", "b", "c"], ["a", 1])),
    ],
)
def test_a_tool_that_returns_something_else_is_told(tool: Tool, found: Any) -> None:
    with pytest.raises(KvcommError, match=r"`clock` must return a text|`search` must return 2 tex"):
        tool.texts(found)


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": "task"}, {"name": "a b"}, {"max_tokens": 0}, {"timeout_s": 0.0}),
        *({"outputs": ("history",)}, {"outputs": ("a", "a")}, {"outputs": ("search",)}),
        *({"retries": -1}, {"backoff_s": -1.0}, {"on_error": "ignore"}, {"on_error": "fallback"}),
        *({"on_error": "fallback", "fallback": " "}, {"fallback": "unused"}),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Tool(**{"name": "search", "run": lambda texts: "", **fields})
