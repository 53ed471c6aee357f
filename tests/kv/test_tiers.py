"""Tiers of the store: what leaves the device goes down, comes back, and is never another."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvcomm.kv import KV, Store
from kvcomm.kv.store import GONE
from kvcomm.kv.tiers import Disk, Host
from tests.reuse.kvs import equal, random_kv

TOKEN = random_kv(1).nbytes
CPU = torch.device("cpu")


def disk(folder: Path, tokens: int = 1000) -> Disk:
    return Disk(folder, lambda: tokens * TOKEN, CPU)


def host(tokens: int) -> Host:
    return Host(lambda: tokens * TOKEN, CPU)


def level(store: Store, key: str) -> int:
    return store._entries[key].level


def test_what_leaves_the_device_comes_back_when_it_is_asked_for(tmp_path: Path) -> None:
    store = Store(lambda: 4 * TOKEN, [host(3), disk(tmp_path)])
    for seed, key in enumerate("abc"):
        store.put(key, random_kv(3, seed))
    assert [level(store, key) for key in "abc"] == [2, 1, 0]
    assert equal(store.get("a"), random_kv(3, 0))
    assert [level(store, key) for key in "abc"] == [0, 2, 1]
    assert equal(store.get("b"), random_kv(3, 1))
    store.check_integrity()


def test_what_another_process_left_on_disk_is_found(tmp_path: Path) -> None:
    first = Store(lambda: 2 * TOKEN, [disk(tmp_path)])
    first.put("a", random_kv(2, 1))
    first.put("b", random_kv(2, 2))
    second = Store(lambda: 2 * TOKEN, [disk(tmp_path)])
    assert ("a" in second, "b" in second) == (True, False)
    assert equal(second.get("a"), random_kv(2, 1))


def test_a_disk_keeps_its_budget(tmp_path: Path) -> None:
    store = Store(lambda: TOKEN, [disk(tmp_path, 3)])
    for seed in range(8):
        store.put(str(seed), random_kv(1, seed))
        store.check_integrity()
    assert len(list(tmp_path.iterdir())) == 3
    small = Store(lambda: TOKEN, [disk(tmp_path, 1)])
    assert len(small) <= 1
    assert len(list(tmp_path.iterdir())) <= 1


def test_a_damaged_file_is_as_good_as_none_and_the_reason_is_kept(tmp_path: Path) -> None:
    store = Store(lambda: 2 * TOKEN, [disk(tmp_path)])
    store.put("a", random_kv(2))
    store.put("b", random_kv(2))
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    assert store.get("a") is None
    assert store.why("a") == "its KV, kept on the disk, is damaged: its checksum is another"
    assert ("a" in store, file.exists()) == (False, False)


def test_a_file_that_vanished_is_as_good_as_none(tmp_path: Path) -> None:
    store = Store(lambda: 2 * TOKEN, [disk(tmp_path)])
    store.put("a", random_kv(2))
    store.put("b", random_kv(2))
    for file in tmp_path.iterdir():
        file.unlink()
    assert store.get("a") is None
    assert "cannot be read" in store.why("a")


def test_kv_that_changed_in_memory_is_noticed_when_it_is_used() -> None:
    store = Store(lambda: 8 * TOKEN)
    kv = random_kv(2)
    store.put("a", kv)
    assert store.get("a", check=True) is kv
    kv.values[0, 0, 0, 0] = 7
    assert store.get("a", check=True) is None
    assert store.why("a") == "its KV, kept on the device, is damaged: its checksum is another"


def test_a_full_disk_loses_what_is_not_needed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = Store(lambda: 2 * TOKEN, [disk(tmp_path)])
    monkeypatch.setattr("kvcomm.kv.tiers.save_tensors", full)
    store.put("a", random_kv(2))
    assert store.put("b", random_kv(2))
    assert store.get("a") is None
    assert store.why("a").startswith(f"{GONE}: the disk did not take it ([Errno 28] No space")
    store.pin("b", 1)
    assert not store.put("c", random_kv(2)), "what is pinned cannot be lost"
    assert store.get("b") is not None


def test_pinned_kv_goes_down_but_never_away(tmp_path: Path) -> None:
    store = Store(lambda: 4 * TOKEN, [disk(tmp_path, 4)])
    for seed, key in enumerate("ab"):
        store.put_recipe(key, lambda seed=seed: random_kv(2, seed), 2 * TOKEN, [9 - seed])  # type: ignore[misc]
        store.get(key)
    assert store.put("c", random_kv(2, 7))
    assert [level(store, key) for key in "abc"] == [1, 0, 0], "b is needed sooner than a"
    assert not store.put("d", random_kv(5)), "more than the device has"
    for key, seed in (("a", 0), ("b", 1)):
        assert equal(store.get(key), random_kv(2, seed))


def test_what_is_needed_soonest_stays_longest() -> None:
    now = [0]
    store = Store(lambda: 3 * TOKEN, now=lambda: now[0])
    for key in "abc":
        store.put(key, random_kv(1))
    store.expect("a", 5)
    store.expect("b", 2)
    store.put("d", random_kv(1))
    assert "c" not in store, "nobody is known to need it"
    store.expect("d", 3)
    store.put("e", random_kv(1))
    assert "a" not in store, "b and d are needed sooner"
    now[0] = 4
    store.expect("e", 9)
    store.put("f", random_kv(1))
    assert "b" not in store, "it was needed at 2: that time has gone by"


def test_the_device_is_trimmed_when_its_budget_shrinks(tmp_path: Path) -> None:
    budget = [6 * TOKEN]
    store = Store(lambda: budget[0], [disk(tmp_path)])
    for key in "abc":
        store.put(key, random_kv(2))
    budget[0] = 3 * TOKEN
    store.trim()
    assert [level(store, key) for key in "abc"] == [1, 1, 0]
    budget[0] = 6 * TOKEN
    store.get("a")
    store.halve()
    assert store.nbytes == 2 * TOKEN


# --- anything in any order ---

KEYS = st.sampled_from("abcdef")


class TiersMachine(RuleBasedStateMachine):
    """Whatever happens, KV is what was put, pinned KV is there, and budgets hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.budget = 8
        self.store = Store(lambda: self.budget * TOKEN, [host(4), disk(self.folder, 6)])
        self.pins: dict[str, list[int]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def kv(self, key: str) -> KV:
        return random_kv(1 + ord(key) % 4, ord(key))

    @rule(key=KEYS)
    def put(self, key: str) -> None:
        self.store.put(key, self.kv(key))

    @rule(key=KEYS, uses=st.lists(st.integers(0, 9), min_size=1, max_size=2))
    def put_recipe(self, key: str, uses: list[int]) -> None:
        kv = self.kv(key)
        if self.store.put_recipe(key, lambda: kv, kv.nbytes, uses):
            self.pins.setdefault(key, []).extend(uses)

    @rule(key=KEYS, use=st.integers(0, 9))
    def pin(self, key: str, use: int) -> None:
        if self.store.pin(key, use):
            self.pins.setdefault(key, []).append(use)

    @rule(key=KEYS)
    def unpin(self, key: str) -> None:
        if self.pins.get(key):
            self.store.unpin(key, self.pins[key].pop())

    @rule(key=KEYS, use=st.integers(0, 9))
    def expect(self, key: str, use: int) -> None:
        self.store.expect(key, use)

    @rule(key=KEYS, check=st.booleans())
    def get(self, key: str, check: bool) -> None:
        found = self.store.get(key, check=check)
        assert found is None or equal(found, self.kv(key))

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.store.drop(key)
        self.pins.pop(key, None)

    @invariant()
    def pinned_kv_is_there_and_budgets_hold(self) -> None:
        self.store.check_integrity()
        for key, uses in self.pins.items():
            assert not uses or key in self.store
        # Nothing lies on disk that the store does not know.
        files = {path.stem for path in self.folder.iterdir()}
        assert files == {
            key for key in "abcdef" if key in self.store and level(self.store, key) == 2
        }


TiersMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = TiersMachine.TestCase
