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
BOTH = torch.arange(24.0).reshape(2, 3, 4)
TENSORS = {
    "float64": BOTH[0].double(),
    "float16": BOTH[0].half(),
    "bfloat16": BOTH[0].bfloat16(),
    "ids": torch.arange(5),
    "none": torch.empty(0, 2),
    "whole": BOTH[0],
    "part of it": BOTH[0, :, 1:3],
}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", TENSORS, FORM, {"text": 'é "quoted"\n'})
    found, header = load_tensors(tmp_path / "x", FORM)
    check(found)
    assert header["text"] == 'é "quoted"\n'


def check(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert all(found[name].dtype == TENSORS[name].dtype for name in TENSORS)


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
    write(tmp_path / "x")
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
    check(found)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "x", write)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]
