"""Files of tensors: what is read is what was written, and everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kvcomm.kv.files import load_tensors, replace_file, save_tensors

FORM = "form-1"
TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5), "none": torch.empty(0, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_saved_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    save_tensors(tmp_path / "x", tensors, FORM, {"text": 'é "quoted"\n'})
    found, header = load_tensors(tmp_path / "x", FORM)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert header["text"] == 'é "quoted"\n'


def test_views_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    both = torch.arange(24.0).reshape(2, 3, 4)
    save_tensors(
        tmp_path / "x", {"keys": both[0], "values": both[1], "part": both[0, :, 1:3]}, FORM
    )
    found, _ = load_tensors(tmp_path / "x", FORM)
    assert torch.equal(found["part"], both[0, :, 1:3])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not safetensors at all"),
        lambda path: path.mkdir(),
        lambda path: save_file({"a": torch.zeros(2)}, path),
        lambda path: save_file({"a": torch.zeros(2)}, path, {"format": FORM}),
        lambda path: save_file({"a": torch.zeros(2)}, path, {"format": FORM, "checksum": "00"}),
        lambda path: save_tensors(path, TENSORS, "another-form"),
    ],
    ids=["missing", "empty", "text", "folder", "foreign", "unsummed", "wrong sum", "another form"],
)
def test_any_other_file_is_a_value_error(tmp_path: Path, write: object) -> None:
    write(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"cannot be read|not in the format|damaged"):
        load_tensors(tmp_path / "x", FORM)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_goes_unseen(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / "x"
    save_tensors(path, TENSORS, FORM)
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
    try:
        found, _ = load_tensors(path, FORM)
    except ValueError:
        return
    # The file may have been hit where it does not matter: a space in its header.
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "x", write)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        save_tensors(tmp_path / "missing" / "x", TENSORS, FORM)
