"""What a run returns: its JSON, usage, and how it looks in a shell and in a notebook."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import unescape

import pytest

from kvcomm.agents import Agent, Tool
from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import AgentGraph, chain
from kvcomm.runtime.result import Result
from tests.runtime.support import TASK, agent, answered, session
from tests.support import python

SEARCH = Tool("search", lambda texts: "Spiders have eight legs.")
GRAPH = AgentGraph([SEARCH, agent("a"), agent("b")], [("search", "a"), ("search", "b"), ("a", "b")])


@pytest.fixture
def result(tiny: LocalEngine) -> Result:
    """A second run: something was reused."""
    with session(tiny, "exact") as active:
        active.run(GRAPH, TASK)
        return active.run(GRAPH, TASK)


def test_every_message_tool_and_reason_to_stop_is_in_the_json(result: Result) -> None:
    found = json.loads(json.dumps(result.to_json()))
    for call, kept in zip(result.calls, found["calls"], strict=True):
        assert (kept["text"], kept["stop"]) == (call.text, call.report.stop)
    (tool,) = found["tools"]
    assert tool["node"] == "search"
    assert tool["texts"] == {"search": "Spiders have eight legs."}
    assert tool["tokens"] == {"search": len("Spiders have eight legs.")}
    assert found["totals"]["output_tokens"] == sum(c.report.output_tokens for c in result.calls)


def test_usage_has_the_names_and_sums_of_openai(result: Result) -> None:
    sums = Counter[str]()
    for call in result.calls:
        usage = call.usage()
        cached = usage.pop("prompt_tokens_details")["cached_tokens"]
        assert cached == call.total("prefix") + call.total("realigned") > 0
        prompt, output = call.report.prompt_tokens, call.report.output_tokens
        assert usage == {
            "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
        }  # fmt: skip
        sums.update(usage, cached=cached)
    cached = sums.pop("cached")
    whole = {**sums, "prompt_tokens_details": {"cached_tokens": cached}}
    assert result.usage() == result.to_json()["usage"] == whole


def test_what_is_shown_in_a_shell_is_short(tiny: LocalEngine, result: Result) -> None:
    rude = answered(tiny, "exact", chain(Agent("a", post=lambda _: "\x1b[31mred\n" * 200)))
    engine = "<LocalEngine random:llama-tiny on cpu, float64>"
    shown = [
        (repr(result), "<Result "),
        (repr(rude), "<Result "),
        (str(rude.calls[0]), "<Call a: "),
        (repr(result.calls), "[<Call a: "),
        (repr(tiny), engine),
        (repr(session(tiny, "exact", namespace="me")), f"<Session exact on {engine}, namespace"),
        (repr(GRAPH), "AgentGraph('graph', 3 nodes, answer='b')"),
    ]
    for text, begin in shown:
        assert text.startswith(begin)
        assert "\n" not in text
        assert "\x1b" not in text
        assert len(text) < 600


def rows_of(page: str) -> list[list[str]]:
    """The rows of a table, as text."""
    return [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall("<tr.*?</tr>", page, re.DOTALL)
    ]


def test_a_notebook_shows_a_table(result: Result) -> None:
    head, *rows = rows_of(result._repr_html_())
    assert head[:5] == ["agent", "prompt", "computed", "prefix", "realigned"]
    for row, call in zip(rows, result.calls, strict=True):
        counts = [call.report.prompt_tokens, *map(call.total, ("computed", "prefix", "realigned"))]
        assert row[:5] == [call.node, *map(str, counts)]
        assert len(row[-1]) < 200
        assert row[6].endswith("(cut)") == (call.stop == "length")


def test_texts_in_a_notebook_stay_texts(tiny: LocalEngine) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>&\x1b[31m"
    page = answered(tiny, "exact", chain(Agent("a", post=lambda _: attack)))._repr_html_()
    assert set(re.findall(r"<(\w+)", page)) == {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page


def test_loading_a_model_in_a_notebook_does_not_warn_of_widgets() -> None:
    code = """
import sys, types, warnings
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
for name in ("IPython", "ipykernel.zmqshell"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["IPython"].get_ipython = lambda: shell
sys.modules["ipywidgets"] = None
warnings.simplefilter("always")
from kvcomm import load_engine
load_engine("random:llama-tiny", device="cpu").close()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not re.search("TqdmWarning|ipywidgets", done.stderr)
