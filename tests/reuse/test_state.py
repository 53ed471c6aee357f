"""What was learned, on disk: saved, read again, refused, left alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvcomm.errors import StateError
from kvcomm.reuse.offsets import ANCHORS, AnchorPool, OffsetModel, Offsets
from kvcomm.reuse.state import FORMAT, Loaded, check_folder, load_state, save_state
from tests.reuse.kvs import equal, random_kv

MODEL, PRINT = "tiny", "0123abcd"
CPU = torch.device("cpu")


def nothing() -> Offsets:
    return Offsets({ANCHORS: AnchorPool})


def model_of(offsets: Offsets, template: str, number: int) -> OffsetModel:
    return offsets.of(ANCHORS, template, "task", number)


def learned(*places: tuple[str, int], seed: int = 0, count: int = 3) -> Offsets:
    offsets = nothing()
    for template, number in places:
        for i in range(count):
            model_of(offsets, template, number).observe(
                random_kv(5, seed + i), random_kv(5, seed + 10 + i), random_kv(2, seed + 20 + i)
            )
    return offsets


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    offsets = learned(("aa", 0), ("aa", 2), ("bb", 1))
    folder = tmp_path / "new" / "state"
    save_state(folder, MODEL, PRINT, offsets)
    assert sorted(p.name for p in folder.iterdir()) == [
        "aa.safetensors",
        "bb.safetensors",
        "manifest.json",
    ]
    again = nothing()
    assert load_state(folder, again, CPU) == Loaded(templates=2, samples=9)
    assert again.models.keys() == offsets.models.keys()
    base = random_kv(4, 99)
    for key, model in offsets.models.items():
        assert equal(again.models[key].predict(base), model.predict(base))
        assert equal(again.models[key].predict_literal(base, 2), model.predict_literal(base, 2))
        assert again.models[key].verdict(base) == model.verdict(base)


def test_pools_that_share_base_kv_can_be_saved(tmp_path: Path) -> None:
    offsets, base = nothing(), random_kv(5)
    for placeholder in (0, 1):
        model_of(offsets, "aa", placeholder).observe(base, random_kv(5, 1), base.slice(0, 0))
    save_state(tmp_path, MODEL, PRINT, offsets)
    assert load_state(tmp_path, nothing(), CPU).samples == 2


def test_nothing_learned_writes_nothing(tmp_path: Path) -> None:
    offsets = nothing()
    model_of(offsets, "aa", 0)
    save_state(tmp_path / "state", MODEL, PRINT, offsets)
    assert not (tmp_path / "state").exists()


def test_an_empty_or_missing_folder_holds_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        check_folder(folder, MODEL, PRINT)
        assert load_state(folder, nothing(), CPU) == Loaded(0, 0)


def test_templates_that_did_not_run_this_time_are_kept(tmp_path: Path) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    save_state(tmp_path, MODEL, PRINT, learned(("bb", 0)))
    assert load_state(tmp_path, nothing(), CPU).templates == 2


# --- refusals ---


def test_another_models_state_is_refused_and_not_touched(tmp_path: Path) -> None:
    save_state(tmp_path, "smol", "ffff", learned(("aa", 0)))
    before = contents(tmp_path)
    message = (
        rf"learned by smol \(ffff, {FORMAT}\); this is tiny \({PRINT}, {FORMAT}\): choose another "
        "--state folder, or --state none"
    )
    with pytest.raises(StateError, match=message):
        check_folder(tmp_path, MODEL, PRINT)
    with pytest.raises(StateError, match=message):
        save_state(tmp_path, MODEL, PRINT, learned(("bb", 0)))
    assert contents(tmp_path) == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    manifest = {"format": "kvcomm-state-0", "model": MODEL, "fingerprint": PRINT}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StateError, match="kvcomm-state-0"):
        check_folder(tmp_path, MODEL, PRINT)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "a"}', "\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError, match=r"is not a state manifest.*another --state folder"):
        check_folder(tmp_path, MODEL, PRINT)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(StateError, match=r"not a state folder \(it has no manifest.json\)"):
        save_state(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    with pytest.raises(StateError, match="not a state folder"):
        check_folder(tmp_path / "model.safetensors", MODEL, PRINT)


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot write the state.*or --state none"):
        save_state(tmp_path / "file" / "state", MODEL, PRINT, learned(("aa", 0)))


# --- damaged files ---


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0), ("bb", 0), ("cc", 0)))
    whole = (tmp_path / "aa.safetensors").read_bytes()
    (tmp_path / "aa.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"x": torch.zeros(1)}, tmp_path / "bb.safetensors")
    before = contents(tmp_path)
    offsets = nothing()
    loaded = load_state(tmp_path, offsets, CPU)
    assert (loaded.templates, loaded.samples) == (1, 3)
    assert [reason.split(":")[0] for reason in loaded.refused] == [
        "aa.safetensors",
        "bb.safetensors",
    ]
    assert f"not in the format {FORMAT}" in loaded.refused[1]
    assert [template for _, template, _ in offsets.models] == ["cc"]
    assert contents(tmp_path) == before


def test_a_file_that_lacks_a_tensor_is_not_read_in_part(tmp_path: Path) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0), ("aa", 1)))
    path = tmp_path / "aa.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if "1" in name and name.endswith("2.offset.keys"))
    del tensors[name]
    save_file(tensors, path, metadata={"format": FORMAT})
    offsets = learned(("aa", 0), seed=500, count=1)
    loaded = load_state(tmp_path, offsets, CPU)
    assert (loaded.templates, loaded.samples) == (0, 0)
    assert loaded.refused == ("aa.safetensors: it lacks '2.offset.keys'",)
    assert model_of(offsets, "aa", 0).samples == 1, "what was known before is kept"


# --- writing ---


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    before = contents(tmp_path)

    def disk_full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kvcomm.reuse.state.save_file", disk_full)
    with pytest.raises(StateError, match="No space left on device"):
        save_state(tmp_path, MODEL, PRINT, learned(("aa", 0), seed=500))
    assert contents(tmp_path) == before


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    path = tmp_path / "aa.safetensors"
    old = path.read_bytes()
    with path.open("rb") as reader:
        save_state(tmp_path, MODEL, PRINT, learned(("aa", 0), seed=500, count=2))
        assert reader.read() == old
    assert load_state(tmp_path, nothing(), CPU).samples == 2


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_what_was_learned_is_private(tmp_path: Path) -> None:
    save_state(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}
