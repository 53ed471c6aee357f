"""State folders of strangers: nothing is run or written outside, and what is wrong is named."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kvcomm.errors import StateError
from kvcomm.kv import KV
from kvcomm.kv.files import save_tensors
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets import ANCHORS, AnchorPool, Offsets
from kvcomm.reuse.offsets.linear import LinearOffsets
from kvcomm.reuse.state import AUDITS, FORMAT, check_folder, load_audits, load_state
from tests.reuse.kvs import random_kv, save_all

CPU = torch.device("cpu")
FAMILIES = {ANCHORS: AnchorPool, "linear": LinearOffsets}


def learned(template: str = "aa") -> Offsets:
    """What three samples taught every family."""
    offsets = Offsets(FAMILIES)
    for family in FAMILIES:
        for seed in range(3):
            kvs = (random_kv(6, seed), random_kv(6, seed + 10), random_kv(2, seed + 20))
            offsets.of(family, template, "task", 0).observe(*kvs)
    return offsets


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved")
    for template in ("aa", "bb"):
        save_all(place, "tiny", "0123", learned(template))
    return place


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A folder with the templates `aa`, which tests spoil, and `bb`, which stays."""
    return shutil.copytree(saved, tmp_path / "state")


class Payload:
    """Unpickling this leaves a file."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return (exec, ("open('owned', 'w').close()",))


def header(value: object, data: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + data


META = {"__metadata__": {"format": FORMAT}}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FILES = {
    "pickle": pickle.dumps(Payload()),
    "pickle in a header": header(pickle.dumps(Payload())),
    "empty": b"",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "huge tensor": header(
        META | {"anchors/0/uses": ONE | {"shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "overflowing shape": header(META | {"a/0/uses": ONE | {"shape": [2**63, 2**63]}}),
    "nested header": header(b'{"a":' * 100_000),
    "names that climb": header(META | {"../../x/y": ONE}, b"\0" * 4),
    "unknown family": header(META | {"os/0/system": ONE}, b"\0" * 4),
}


def times(folder: Path) -> dict[str, int]:
    """When everything beside `folder` and in it was changed, by its name there."""
    found = {path: path.lstat().st_mtime_ns for path in folder.parent.rglob("*") if path != folder}
    return {str(path.relative_to(folder.parent)): when for path, when in found.items()}


def check_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aa` is named and set aside, `bb` is read, and nothing else has happened."""
    monkeypatch.chdir(folder.parent)
    before = times(folder)
    offsets = Offsets(FAMILIES)
    loaded = load_state(folder, offsets, CPU)
    assert [reason.partition(":")[0] for reason in loaded.refused] == ["aa.safetensors"]
    assert {template for _, template, _ in offsets.models} == {"bb"}
    after = times(folder)
    before["state/aa.safetensors.damaged"] = before.pop("state/aa.safetensors")
    assert after == before


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (folder / "aa.safetensors").write_bytes(FILES[what])
    check_refused(folder, monkeypatch)


SPOILED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "not a number": lambda tensor: torch.full_like(tensor.double(), float("nan")),
    "infinite": lambda tensor: torch.full_like(tensor.double(), float("inf")),
    "one dimension": lambda tensor: tensor.reshape(-1)[:1],
    "more dimensions": lambda tensor: tensor[None, None],
    "empty": lambda tensor: tensor.reshape(-1)[:0],
    "negative": lambda tensor: torch.full_like(tensor, -1).long(),
}
NAMES = [
    *(f"anchors/0/{name}" for name in ("uses", "1.base.keys", "1.offset.values", "1.literal.keys")),
    *(f"linear/task/{name}" for name in ("xx", "xy", "x", "y", "counters")),
]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (name, what)
        for name in NAMES
        for what in SPOILED
        # Fewer counters are a pool of fewer anchors.
        if not (name.endswith("uses") and what in ("one dimension", "empty"))
    ],
)
def test_tensors_that_do_not_fit(folder: Path, monkeypatch, name: str, what: str) -> None:
    path = folder / "aa.safetensors"
    tensors = load_file(path)
    tensors[name] = SPOILED[what](tensors[name]).contiguous()
    save_tensors(path, tensors, FORMAT)
    check_refused(folder, monkeypatch)


@pytest.mark.parametrize("kind", ["nowhere", "/dev/zero", "folder", "pipe"])
def test_what_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = folder / "aa.safetensors"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    check_refused(folder, monkeypatch)


def test_a_link_out_of_the_folder_is_replaced_not_written_through(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "aa.safetensors").rename(outside)
    (folder / "aa.safetensors").symlink_to(outside)
    (folder / "manifest.json").rename(folder.parent / "outside.json")
    (folder / "manifest.json").symlink_to(folder.parent / "outside.json")
    before = outside.read_bytes()
    save_all(folder, "tiny", "0123", learned("aa"))
    assert outside.read_bytes() == before
    assert not (folder / "aa.safetensors").is_symlink()


@pytest.mark.parametrize("text", ["[]", '{"format": NaN}', "9" * 5000, "\0", "[" * 100_000])
def test_a_manifest_or_audits_that_are_none(folder: Path, text: str) -> None:
    (folder / ("aa" + AUDITS)).write_text(text)
    assert load_audits(folder, Auto()).startswith("aa" + AUDITS)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StateError, match="is not a state manifest"):
        check_folder(folder, "tiny", "0123")


LIGHT = ([[1]], [["nan", 1, True]], [[-1, 1, True]], [[1, {}, True]], "text")


@pytest.mark.parametrize("audits", [[], {"aa": []}, *({"aa": {"light": each}} for each in LIGHT)])
def test_audits_that_are_none_are_set_aside(folder: Path, audits: object) -> None:
    auto = Auto()
    (folder / ("aa" + AUDITS)).write_text(json.dumps({"format": FORMAT, "audits": audits}))
    assert load_audits(folder, auto).startswith(f"aa{AUDITS}: ")
    assert not auto.audits


LIKE = random_kv(1)
# Layers, heads and dimensions: fewer or more of each than (3, 2, 4).
OTHERS = [(3, 1, 4), (3, 4, 4), (2, 2, 4), (1, 1, 4), (5, 2, 4), (3, 2, 8)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", OTHERS)
def test_state_of_another_shape_is_set_aside(
    folder: Path, family: str, shape: tuple[int, int, int]
) -> None:
    layers, heads, dim = shape
    other = Offsets(FAMILIES)
    for _ in range(4):
        sample = (KV(*torch.randn(2, layers, heads, tokens, dim)) for tokens in (6, 6, 2))
        other.of(family, "aa", "task", 0).observe(*sample)
    save_all(folder, "tiny", "0123", other)
    offsets = Offsets(FAMILIES, like=LIKE)
    (refused,) = load_state(folder, offsets, CPU).refused
    assert refused.startswith("aa.safetensors: ")
    assert {template for _, template, _ in offsets.models} == {"bb"}


def test_a_literal_of_another_shape_than_its_placeholder(folder: Path) -> None:
    assert load_state(folder, Offsets(FAMILIES, like=LIKE), CPU).refused == ()
    path = folder / "aa.safetensors"
    tensors = load_file(path)
    for part in ("keys", "values"):
        tensors[f"linear/task/literal.{part}"] = torch.zeros(3, 2, 2, 8)
    save_tensors(path, tensors, FORMAT)
    (refused,) = load_state(folder, Offsets(FAMILIES, like=LIKE), CPU).refused
    assert "a literal of the shape (3, 2, 8)" in refused
