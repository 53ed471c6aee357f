"""What was learned, on disk: saved, read again, refused, left alone."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvcomm.errors import StateError
from kvcomm.kv.files import save_tensors
from kvcomm.prompt import Template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets import ANCHORS, AnchorPool, OffsetModel, Offsets
from kvcomm.reuse.state import (
    AUDITS,
    FORMAT,
    LIBRARY,
    Loaded,
    check_folder,
    copy_state,
    learned_by,
    load_audits,
    load_state,
    save_audits,
    save_state,
)
from tests.reuse.kvs import equal, random_kv, save_all

ROOT = Path(__file__).parents[2]
MODEL, PRINT = "tiny", "0123abcd"
CPU = torch.device("cpu")
FILLED = Template(((), ()), ("task",), "0011")


def nothing() -> Offsets:
    return Offsets({ANCHORS: AnchorPool})


def model_of(offsets: Offsets, template: str, number: int) -> OffsetModel:
    return offsets.of(ANCHORS, template, "task", number)


def learned(*places: tuple[str, int], seed: int = 0, count: int = 3) -> Offsets:
    offsets = nothing()
    for template, number in places:
        for i in range(seed, seed + count):
            sample = random_kv(5, i), random_kv(5, i + 10), random_kv(2, i + 20)
            model_of(offsets, template, number).observe(*sample)
    return offsets


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    offsets = learned(("aa", 0), ("aa", 2), ("bb", 1))
    folder = tmp_path / "new" / "state"
    save_all(folder, MODEL, PRINT, offsets)
    assert contents(folder).keys() == {"aa.safetensors", "bb.safetensors", "manifest.json"}
    if os.name == "posix":
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == {0o600}, "what was learned is private"
    again = nothing()
    assert load_state(folder, again, CPU) == Loaded(templates=2, samples=9)
    assert again.models.keys() == offsets.models.keys()
    base = random_kv(4, 99)
    for key, model in offsets.models.items():
        assert equal(again.models[key].predict(base), model.predict(base))
        assert equal(again.models[key].predict_literal(base, 2), model.predict_literal(base, 2))
        assert again.models[key].predictability(base) == model.predictability(base)


def test_where_nothing_was_learned_there_is_nothing(tmp_path: Path) -> None:
    offsets = nothing()
    model_of(offsets, "aa", 0)
    save_all(tmp_path / "missing", MODEL, PRINT, offsets)
    assert not (tmp_path / "missing").exists()
    for folder in (tmp_path, tmp_path / "missing"):
        check_folder(folder, MODEL, PRINT)
        assert load_state(folder, nothing(), CPU) == Loaded(0, 0)


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    offsets = learned(("aa", 0), ("bb", 0))
    offsets.learned("aa")
    offsets.learned("bb")
    first = copy_state(offsets, "", {})
    written = save_state(tmp_path, MODEL, PRINT, first)
    assert written == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    known = {template: version for template, (version, _) in first.items()}
    assert copy_state(offsets, "", known) == {}
    assert save_state(tmp_path, MODEL, PRINT, {}) == 0
    for anew in (False, True):
        if anew:  # that is another version, too
            offsets.forget("bb")
            offsets.models |= learned(("bb", 0)).models
        offsets.learned("bb")
        assert list(copy_state(offsets, "", known)) == ["bb"]


def test_a_copy_does_not_change_with_what_is_learned_behind_it() -> None:
    offsets = learned(("aa", 0))
    ((_, tensors),) = copy_state(offsets, "", {}).values()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for model in offsets.models.values():
        for tensor in model.state().values():
            tensor.zero_()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_namespaces_share_a_folder_and_read_their_own(tmp_path: Path) -> None:
    one, two = (learned_by(FILLED, name) for name in ("one", "two"))
    offsets = learned((one, 0), (two, 0), ("aa", 0))
    for name in ("one", "two", ""):
        save_state(tmp_path, MODEL, PRINT, copy_state(offsets, name, {}))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for name, stem in (("one", one), ("two", two), ("", "aa")):
        found = nothing()
        assert load_state(tmp_path, found, CPU, name).templates == 1
        assert {template for _, template, _ in found.models} == {stem}


def test_what_is_known_already_is_not_read_over(tmp_path: Path) -> None:
    save_all(tmp_path, MODEL, PRINT, learned(("aa", 0), ("bb", 0)))
    offsets = learned(("aa", 0), seed=500, count=5)
    assert load_state(tmp_path, offsets, CPU) == Loaded(templates=2, samples=8)
    assert model_of(offsets, "aa", 0).samples == 5


def three(folder: Path) -> None:
    """Files of three templates, of which `bb` is the newest and `cc` the oldest."""
    save_all(folder, MODEL, PRINT, learned(("aa", 0), ("bb", 0), ("cc", 0)))
    for age, name in enumerate(("bb", "aa", "cc")):
        (folder / (name + AUDITS)).write_text("{}")
        os.utime(folder / f"{name}.safetensors", (1e9 - age, 1e9 - age))


def test_a_folder_stays_below_its_limit(tmp_path: Path) -> None:
    three(tmp_path)
    size = (tmp_path / "aa.safetensors").stat().st_size
    made = copy_state(learned(("dd", 0)), "", {})
    for limit, left in ((3 * size, {"aa", "bb", "dd"}), (0, {"dd"})):  # what was written stays
        save_state(tmp_path, MODEL, PRINT, made, limit=limit)
        assert {path.stem for path in tmp_path.glob("*.safetensors")} == left
    assert not (tmp_path / ("cc" + AUDITS)).exists()


def test_audits_are_kept_template_by_template(tmp_path: Path) -> None:
    one, two = Auto(), Auto()
    one.record("aa", {"light": 0.01}, 3, "light")
    one.record("aa, rotated", {"light": 0.02}, 3)
    two.record("bb", {"light": 0.03}, 3, "light")
    assert save_audits(tmp_path, one) == (tmp_path / ("aa" + AUDITS)).stat().st_size
    save_audits(tmp_path, two)
    assert save_audits(tmp_path, one) == 0
    found = Auto()
    assert load_audits(tmp_path, found) == ""
    assert found.audits == one.audits | two.audits
    assert not found.unsaved
    other = learned_by(FILLED, "one")
    two.record(other, {"light": 0.04}, 3, "light")
    save_audits(tmp_path, two)
    found = Auto()
    load_audits(tmp_path, found, "one")
    assert {template for template, _ in found.audits} == {other}


# --- refusals ---


@pytest.mark.parametrize(
    ("old", "new"), [(PRINT, "ffff"), (FORMAT, "kvcomm-state-0"), (LIBRARY, "9.9")]
)
def test_state_of_others_is_refused_and_not_touched(tmp_path: Path, old: str, new: str) -> None:
    save_all(tmp_path, MODEL, PRINT, learned(("aa", 0)))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    before = contents(tmp_path)
    mine = f"{MODEL} ({PRINT}, {LIBRARY}, {FORMAT})"
    message = rf"learned by {re.escape(mine.replace(old, new))}; this is {re.escape(mine)}: "
    message += "choose another --state folder, or --state none"
    with pytest.raises(StateError, match=message):
        check_folder(tmp_path, MODEL, PRINT)
    with pytest.raises(StateError, match=message):
        save_all(tmp_path, MODEL, PRINT, learned(("bb", 0)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "a"}', "\xff", None])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is None:
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        message = r"not a state folder \(it has no manifest.json\)"
    else:
        (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
        message = r"is not a state manifest.*another --state folder"
    for refuse in (check_folder, lambda *which: save_all(*which, learned(("aa", 0)))):
        with pytest.raises(StateError, match=message):
            refuse(tmp_path, MODEL, PRINT)


def test_a_file_in_the_place_of_a_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="not a state folder"):
        check_folder(tmp_path / "file", MODEL, PRINT)
    with pytest.raises(StateError, match=r"cannot write the state.*or --state none"):
        save_all(tmp_path / "file" / "state", MODEL, PRINT, learned(("aa", 0)))


# --- damaged files ---


def test_a_damaged_file_is_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    save_all(tmp_path, MODEL, PRINT, learned(("aa", 0), ("bb", 0)))
    path = tmp_path / "aa.safetensors"
    tensors = load_file(path)
    (lacking,) = (name for name in tensors if name.endswith("2.offset.keys"))
    del tensors[lacking]
    save_tensors(path, tensors, FORMAT)
    found = path.read_bytes()
    offsets = learned(("aa", 0), seed=500, count=1)
    loaded = load_state(tmp_path, offsets, CPU, again=True)
    assert (loaded.templates, loaded.samples) == (1, 3)
    (refused,) = loaded.refused
    assert refused.startswith("aa.safetensors: ")
    assert "it lacks '2.offset.keys'" in refused
    assert model_of(offsets, "aa", 0).samples == 1, "what was known before is kept"
    assert (tmp_path / "aa.safetensors.damaged").read_bytes() == found
    assert load_state(tmp_path, nothing(), CPU).refused == ()
    save_all(tmp_path, MODEL, PRINT, offsets)
    assert load_state(tmp_path, nothing(), CPU).templates == 2


def test_what_there_is_no_room_for_is_left(tmp_path: Path) -> None:
    three(tmp_path)
    offsets, one = nothing(), learned(("aa", 0)).nbytes
    offsets.budget = lambda: one + 1
    loaded = load_state(tmp_path, offsets, CPU)
    assert [template for _, template, _ in offsets.models] == ["bb", "aa"]
    assert loaded.refused == ("1 templates: no room in memory",)
    assert (tmp_path / "cc.safetensors").exists()


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Writers and readers at once: every file is whole at any time."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.reuse.test_state import *\n"
        "folder, seed = Path(sys.argv[1]), int(sys.argv[2])\n"
        "for turn in range(30):\n"
        "    made = learned(('aa', 0), ('bb', 0), seed=seed + turn, count=1 + turn % 3)\n"
        "    save_all(folder, MODEL, PRINT, made)\n"
        "    found = load_state(folder, nothing(), CPU)\n"
        "    assert found.templates == 2 and not found.refused, found\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, seed], cwd=ROOT)
        for seed in ("0", "1000")
    ]
    assert [worker.wait(timeout=50) for worker in workers] == [0, 0]
    assert not list(tmp_path.glob(".*"))
