"""`kvcomm models`."""

from __future__ import annotations

import json


def test_list(cli) -> None:
    models = json.loads(cli("models", "list", "--json").out)["models"]
    assert {"name", "kind", "where", "ready"} == set(models[0])
    names = [model["name"] for model in models]
    assert "smollm2-135m" in names
    assert "random:llama-tiny" in names
    text = cli("models", "list").out
    assert all(name in text for name in names)


def test_check(cli) -> None:
    ended = cli("models", "check", "random:llama-tiny", "--json")
    value = json.loads(ended.out)
    assert ended.code == 0
    assert value["reuse_ok"]
    assert value["layers"] == 3
    assert all(error < 1e-3 for error in value["measured"].values())
    text = cli("models", "check", "random:llama-tiny").out
    assert "reuse" in text
    assert "bytes a token" in text


def test_a_model_that_is_refused_ends_with_1_and_says_why(cli) -> None:
    ended = cli("models", "check", "random:llama-dynamic-tiny")
    assert ended.code == 1
    assert "refused: " in ended.out


def test_unknown_models(cli) -> None:
    for command in ("check", "fetch"):
        ended = cli("models", command, "no-such-model")
        assert ended.code == 2
        assert ended.err.rstrip().split("\n")[-1].startswith("error: ")
