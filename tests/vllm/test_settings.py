"""Options of the connector, and where offset models are kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvcomm.vllm.settings import GB, Settings, model_key


def model(**changes: Any) -> Any:
    text = {"layers": 3, "transformers_version": "5.1", **changes.pop("text", {})}
    made = {"model": "m", "revision": None, "dtype": "float32", "quantization": None}
    return SimpleNamespace(
        hf_text_config=SimpleNamespace(to_dict=lambda: text), **{**made, **changes}
    )


def test_options_have_defaults_and_limits() -> None:
    assert Settings.of({}) == Settings()
    assert Settings.of({"store_gb": 2, "state": "x"}) == Settings(store_gb=2.0, state="x")
    for wrong in ({"store_gb": -1}, {"row_s": "5"}, {"models_gb": True}, {"device_share": 1.0},
                  {"state": 5}):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            Settings.of(wrong)


def test_the_store_is_on_the_host_or_has_a_share_of_each_device() -> None:
    assert Settings(store_gb=0.5).store_bytes(4, 10 * GB) == GB // 2
    assert Settings(device_share=0.5).store_bytes(4, 10 * GB) == 20 * GB


def test_each_rank_has_a_folder_and_says_what_it_does_not_read(tmp_path: Path) -> None:
    settings = Settings(state=str(tmp_path))
    first, why = settings.kept(model(), 2, 0)
    assert first is not None
    assert why == ""
    first.folder.mkdir(parents=True)
    second, why = settings.kept(model(), 2, 1)
    assert second is not None
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint
    assert why == ""
    _, why = settings.kept(model(), 1, 0)
    assert why == "what 2 ranks learned is not read by 1"
    other, why = settings.kept(model(text={"layers": 4}), 1, 0)
    assert other is not None
    assert why == ""
    assert other.folder.parent != first.folder.parent
    assert Settings().kept(model(), 1, 0) == (None, "")


def test_a_model_is_the_same_under_another_library() -> None:
    assert model_key(model()) == model_key(model(text={"transformers_version": "6"}))
    assert model_key(model()) != model_key(model(dtype="bfloat16"))
