"""`kvcomm models`."""

import json
from pathlib import Path

import pytest
import torch

from kvcomm.engine.shapes import random_model
from tests.codecs import DROPS_SYSTEM, TWICE


def test_list_and_check(cli) -> None:
    models = json.loads(cli("models", "list", "--json").out)["models"]
    assert {"name", "kind", "where", "ready"} == set(models[0])
    names = [model["name"] for model in models]
    assert "smollm2-135m" in names
    assert "random:llama-tiny" in names
    assert all(name in cli("models", "list").out for name in names)
    ended = cli("models", "check", "random:llama-tiny", "--json")
    value = json.loads(ended.out)
    assert ended.code == 0
    assert value["reuse_ok"]
    assert value["layers"] == 3
    assert all(error < 1e-3 for error in value["measured"].values())
    text = cli("models", "check", "random:llama-tiny").out
    assert "reuse" in text
    assert "bytes a token" in text
    refused = cli("models", "check", "random:llama-dynamic-tiny")
    assert refused.code == 1
    assert "refused: " in refused.out
    for command in ("check", "fetch"):
        ended = cli("models", command, "no-such-model")
        assert ended.code == 2
        assert ended.err.rstrip().split("\n")[-1].startswith("error: ")


def save(folder: Path, shape: str, template: str) -> None:
    model, tokenizer = random_model(shape, torch.device("cpu"), torch.float32)
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for t in tools %}{{ t }}{% endfor %}", "cannot be rendered (TypeError: 'NoneType'"),
        ("{{ raise_exception('Tools are needed') }}", "cannot be rendered (TemplateError: Tools"),
        ("{{ strftime_now('%Y') + 1 }}", "cannot be rendered (TypeError"),
        ("{% if x %}", "cannot be rendered (TemplateSyntaxError"),
        ("Hello.", "kept 0 of 1 placeholders"),
        (TWICE, "kept 2 of 1 placeholders"),
    ],
)
def test_a_chat_template_without_prompts(cli, tmp_path: Path, template: str, says: str) -> None:
    save(tmp_path / "m", "llama-tiny", template)
    for command in (["models", "check", "./m"], ["run", "--model", "./m", "What is 1 + 1?"]):
        ended = cli(*command)
        assert ended.code == 2
        *before, last = ended.err.rstrip().split("\n")
        assert last.startswith("error: the model's chat template ")
        assert says in last
        assert all(line.startswith("loading") for line in before)


def test_a_system_prompt_that_is_nothing_but_a_placeholder(cli, tmp_path: Path) -> None:
    save(tmp_path / "m", "llama-tiny", DROPS_SYSTEM)
    (tmp_path / "g.py").write_text(
        "from kvcomm.agents import Agent\nfrom kvcomm.graphs import chain\n"
        "graph = chain(Agent('a', system='{task}', prompt='{task}\\n\\nGo on.'))\n"
    )
    words = ("--model", "./m", "--graph", "g.py", "--reuse", "exact", "--max-tokens", "4")
    assert cli("run", *words, "What is 1 + 1?").code == 0
