"""The store: content addresses, pins, recipes, and a budget that holds."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcomm.kv import KV, Store, content_key
from kvcomm.kv.store import GONE
from tests.reuse.kvs import equal, random_kv

TOKEN = random_kv(1).nbytes


def store_of(tokens: int) -> Store:
    """A store with room for so many tokens."""
    return Store(lambda: tokens * TOKEN)


def never() -> KV:
    raise AssertionError("nobody asked for this KV")


# --- addresses ---


def test_equal_content_has_one_address_and_parts_are_told_apart() -> None:
    assert content_key("m", (1, 2), True) == content_key("m", (1, 2), True)
    keys = [
        content_key("m", (1, 2)),
        content_key("m", (12,)),
        content_key("m1", (2,)),
        content_key("m", 1, 2),
        content_key("m", (1, 2), ""),
        content_key("", "m", (1, 2)),
        content_key("m", "(1, 2)"),
    ]
    assert len(set(keys)) == len(keys)


# --- budget ---


def test_what_was_put_is_there_until_the_room_is_needed() -> None:
    store = store_of(5)
    assert store.put("a", random_kv(2, 1))
    assert store.put("b", random_kv(2, 2))
    assert equal(store.get("a"), random_kv(2, 1))
    assert store.put("c", random_kv(2, 3))
    assert "b" not in store, "a was used after b"
    assert store.get("b") is None
    assert ("a" in store, "c" in store, len(store)) == (True, True, 2)
    assert store.nbytes == 4 * TOKEN


def test_pinned_entries_stay() -> None:
    store = store_of(4)
    store.put("a", random_kv(2))
    assert store.pin("a", 0)
    store.put("b", random_kv(2))
    assert store.put("c", random_kv(2))
    assert ("a" in store, "b" in store) == (True, False)
    store.unpin("a", 0)
    assert store.put("d", random_kv(4))
    assert "a" not in store


def test_nothing_goes_for_an_entry_that_cannot_fit() -> None:
    store = store_of(4)
    store.put("a", random_kv(2))
    store.put("b", random_kv(2))
    store.pin("b", 0)
    assert not store.put("c", random_kv(3))
    assert not store.put("d", random_kv(5))
    assert ("a" in store, "b" in store, len(store)) == (True, True, 2)


def test_putting_a_key_again_keeps_its_pins_and_counts_it_once() -> None:
    store = store_of(4)
    store.put("a", random_kv(3, 1))
    store.pin("a", 0)
    assert store.put("a", random_kv(4, 2))
    assert store.nbytes == 4 * TOKEN
    assert not store.put("b", random_kv(1)), "a is still pinned"
    assert equal(store.get("a"), random_kv(4, 2))


def test_pins_are_counted() -> None:
    store = store_of(2)
    store.put("a", random_kv(2))
    store.pin("a", 0)
    store.pin("a", 0)
    store.unpin("a", 0)
    assert not store.put("b", random_kv(2))
    store.unpin("a", 0)
    assert store.put("b", random_kv(2))


def test_unknown_keys() -> None:
    store = store_of(2)
    assert store.get("x") is None
    assert not store.pin("x", 0)
    store.unpin("x", 0)
    store.drop("x")
    assert len(store) == 0


def test_too_many_unpins_leave_no_debt() -> None:
    store = store_of(2)
    store.put("a", random_kv(2))
    store.unpin("a", 0)
    store.pin("a", 0)
    assert not store.put("b", random_kv(1))


# --- recipes ---


def test_a_recipe_is_made_once_when_first_asked_for() -> None:
    store, made = store_of(4), []

    def make() -> KV:
        made.append(1)
        return random_kv(2, 7)

    assert store.put_recipe("a", make, 2 * TOKEN, uses=[0, 0])
    assert not made
    assert store.nbytes == 2 * TOKEN
    assert equal(store.get("a"), random_kv(2, 7))
    assert store.get("a") is store.get("a")
    assert made == [1]


def test_a_recipe_nobody_needed_goes_with_its_last_pin() -> None:
    store = store_of(4)
    store.put_recipe("a", never, 2 * TOKEN, uses=[0, 0])
    store.unpin("a", 0)
    assert "a" in store
    store.unpin("a", 0)
    assert ("a" in store, store.nbytes) == (False, 0)


def test_a_recipe_that_was_made_goes_with_its_last_pin() -> None:
    store = store_of(4)
    store.put_recipe("a", lambda: random_kv(2), 2 * TOKEN, uses=[0, 1])
    store.get("a")
    store.unpin("a", 0)
    assert store.get("a") is not None
    store.unpin("a", 1)
    assert "a" not in store
    assert store.nbytes == 0
    assert store.why("a") == GONE


def test_a_recipe_without_consumers_is_not_kept() -> None:
    store = store_of(4)
    assert not store.put_recipe("a", never, TOKEN, uses=[])
    assert len(store) == 0


def test_a_recipe_for_known_kv_only_adds_its_pins() -> None:
    store = store_of(4)
    store.put("a", random_kv(4))
    assert store.put_recipe("a", never, 4 * TOKEN, uses=[0])
    assert not store.put("b", random_kv(1))
    assert equal(store.get("a"), random_kv(4))


def test_a_recipe_without_room_is_refused() -> None:
    store = store_of(4)
    store.put_recipe("a", never, 3 * TOKEN, uses=[0])
    assert not store.put_recipe("b", never, 2 * TOKEN, uses=[0])
    assert "a" in store


def test_a_recipe_that_fails_may_be_asked_again() -> None:
    store, fails = store_of(4), [True, False]

    def make() -> KV:
        if fails.pop(0):
            raise RuntimeError("out of memory")
        return random_kv(1)

    store.put_recipe("a", make, TOKEN, uses=[0])
    with pytest.raises(RuntimeError):
        store.get("a")
    store.check_integrity()
    assert len(store.get("a")) == 1


def test_forgetting() -> None:
    store = store_of(4)
    for key in "abc":
        store.put_recipe(key, never, TOKEN, uses=[0])
    store.drop("a")
    assert ("a" in store, len(store)) == (False, 2)
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)


def test_threads_share_a_store() -> None:
    store, made, errors = store_of(50), [], []
    store.put_recipe(
        "shared", lambda: made.append(1) or random_kv(1), TOKEN, uses=[0, 0, 0, 0, 0, 0, 0, 0]
    )

    def work(number: int) -> None:
        try:
            for i in range(40):
                store.put(f"{number}-{i}", random_kv(2))
                store.get(f"{number}-{i}")
                store.get("shared")
            store.unpin("shared", 0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.check_integrity()
    assert not errors
    assert made == [1]


# --- anything in any order ---

KEYS = st.sampled_from("abcde")


class StoreMachine(RuleBasedStateMachine):
    """Random operations beside a slow model: a list of entries, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store_of(8)
        self.entries: list[dict] = []  # key, tokens, pins, passing

    def find(self, key: str) -> dict | None:
        return next((entry for entry in self.entries if entry["key"] == key), None)

    def admit(self, key: str, tokens: int, pins: int, passing: bool) -> bool:
        old = self.find(key)
        kept = [entry for entry in self.entries if entry is not old]
        if sum(entry["tokens"] for entry in kept if entry["pins"]) + tokens > 8:
            return False
        while sum(entry["tokens"] for entry in kept) + tokens > 8:
            kept.remove(next(entry for entry in kept if not entry["pins"]))
        pins += old["pins"] if old else 0
        self.entries = [*kept, {"key": key, "tokens": tokens, "pins": pins, "passing": passing}]
        return True

    @rule(key=KEYS, tokens=st.integers(1, 9))
    def put(self, key: str, tokens: int) -> None:
        assert self.store.put(key, random_kv(tokens)) == self.admit(key, tokens, 0, False)

    @rule(key=KEYS, tokens=st.integers(1, 9), pins=st.integers(0, 2))
    def put_recipe(self, key: str, tokens: int, pins: int) -> None:
        old = self.find(key)
        if old:
            old["pins"] += pins
            expected = True
        else:
            expected = pins > 0 and self.admit(key, tokens, pins, True)
        make = lambda: random_kv(tokens)  # noqa: E731
        assert self.store.put_recipe(key, make, tokens * TOKEN, [0] * pins) == expected

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        entry, kv = self.find(key), self.store.get(key)
        assert (kv is None) == (entry is None)
        if entry is not None and kv is not None:
            assert len(kv) == entry["tokens"]
            self.entries.remove(entry)
            self.entries.append(entry)

    @rule(key=KEYS)
    def pin(self, key: str) -> None:
        entry = self.find(key)
        assert self.store.pin(key, 0) == (entry is not None)
        if entry:
            entry["pins"] += 1

    @rule(key=KEYS)
    def unpin(self, key: str) -> None:
        self.store.unpin(key, 0)
        if entry := self.find(key):
            entry["pins"] = max(entry["pins"] - 1, 0)
            if not entry["pins"] and entry["passing"]:
                self.entries.remove(entry)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        self.store.drop(entry["key"])
        self.entries.remove(entry)

    @invariant()
    def the_store_is_as_expected(self) -> None:
        self.store.check_integrity()
        assert {key for key in "abcde" if key in self.store} == {e["key"] for e in self.entries}
        assert self.store.nbytes == sum(entry["tokens"] for entry in self.entries) * TOKEN


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = StoreMachine.TestCase


# --- copies that pass ---


def test_what_is_put_for_uses_goes_with_the_last_of_them() -> None:
    store = store_of(4)
    kv = random_kv(4)
    assert store.put("copy", kv, uses=(3, 5))
    assert not store.put("more", random_kv(1)), "it is pinned"
    store.unpin("copy", 3)
    assert store.get("copy") is kv
    store.unpin("copy", 5)
    assert "copy" not in store
    store.check_integrity()


def test_what_was_there_before_stays_when_its_uses_are_over() -> None:
    store = store_of(4)
    kv = random_kv(2)
    store.put("own", kv)
    assert store.put("own", random_kv(2), uses=(3,))
    store.unpin("own", 3)
    assert store.get("own") is kv


def test_a_copy_without_room_is_refused() -> None:
    store = store_of(4)
    store.put("pinned", random_kv(3), uses=(1,))
    assert not store.put("copy", random_kv(2), uses=(2,))
    assert "copy" not in store
