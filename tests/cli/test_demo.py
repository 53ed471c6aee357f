"""`kvcomm demo` with a small random model: its shape, not its figures."""

from __future__ import annotations

import json
from pathlib import Path

ARGS = ("demo", "--model", "random:llama-tiny", "--limit", "2")


def test_json_has_both_graphs_and_every_mode(cli) -> None:
    ended = cli(*ARGS, "--json", "--out", "here")
    assert ended.code == 0
    value = json.loads(ended.out)
    modes = {name: list(graph["modes"]) for name, graph in value["graphs"].items()}
    assert modes == {"chain": ["dense", "exact", "kvcomm"], "debate": ["dense", "exact"]}
    chain = value["graphs"]["chain"]["modes"]
    assert chain["dense"]["reused_tokens"] == 0
    assert chain["dense"]["same_as_dense"] == chain["exact"]["same_as_dense"] == 1
    assert chain["exact"]["reused_tokens"] > 0
    assert chain["exact"]["prompt_tokens"] == chain["dense"]["prompt_tokens"]
    assert chain["kvcomm"]["dense_calls"] > 0
    assert len(list(Path("here").glob("*/trace.jsonl"))) == 2 * 3 + 2 * 2


def test_a_reader_gets_the_first_question_and_two_tables(cli) -> None:
    text = cli(*ARGS).out
    assert "How many rolls are left? (answer: 25)" in " ".join(text.split())
    assert text.count("reused  extra  = dense") == 2
    assert "calls were dense" in text
    assert max(map(len, text.split("\n"))) <= 80


def test_bad_limits(cli) -> None:
    ended = cli("demo", "--limit", "0")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --limit 0: the demo needs at least 1 question\n"
