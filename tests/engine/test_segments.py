"""The segment cache: addresses, pending entries, views, readers, tiers, and a budget that holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvcomm.engine.segments import (
    ALONE,
    CONTEXTS,
    NO_ROOM,
    NOT_MADE,
    READ,
    SegmentCache,
    text_key,
)
from kvcomm.kv import KV
from kvcomm.kv.tiers import GONE, Disk, HostMemory
from tests.reuse.kvs import equal, random_kv

TOKEN = random_kv(1).nbytes
CPU = torch.device("cpu")


def cache_of(tokens: int) -> SegmentCache:
    """A cache with room for so many tokens."""
    return SegmentCache(lambda: tokens * TOKEN)


def disk(folder: Path, tokens: int = 1000) -> Disk:
    return Disk(folder, lambda: tokens * TOKEN, CPU)


def host(tokens: int) -> HostMemory:
    return HostMemory(lambda: tokens * TOKEN, CPU)


class Source:
    """A sequence: its KV is `random_kv` of so many tokens; `copies` counts what was asked of it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.copies = seed, 0

    def position_free(self, slots: Sequence[int]) -> KV:
        self.copies += 1
        return random_kv(len(slots), self.seed)


def written(cache: SegmentCache) -> None:
    """Wait until everything is on disk."""
    assert cache.tiers.disk is not None
    cache.tiers.disk.flush()


def level(cache: SegmentCache, key: str) -> int:
    return cache._entries[key].level


# --- addresses ---


def test_a_text_has_one_address_in_every_context_but_not_in_every_namespace() -> None:
    assert text_key("m", "", (1, 2)) == text_key("m", "", [1, 2])
    others = [("m", "", (1, 3)), ("m", "n", (1, 2)), ("other", "", (1, 2))]
    assert len({text_key("m", "", (1, 2)), *(text_key(*other) for other in others)}) == 4


def test_a_text_is_found_alone_or_as_prompts_have_read_it() -> None:
    cache = cache_of(9)
    cache.add("text", "here", random_kv(1), "a")

    def found(here: str = "", *, alone: bool = False) -> str | None:
        entry = cache.find("text", alone=alone, here=here)
        return entry.kind if entry else None

    assert (found(), found("there"), found("here")) == ("borrowed", "borrowed", None)
    assert found(alone=True) is None
    cache.put(f"text.{ALONE}", random_kv(1))
    assert (found(alone=True), found("here"), found()) == ("alone", "alone", "borrowed")
    cache.add("text", "there", random_kv(1, 1), "b")
    assert (found("here"), found("there")) == ("mean", "mean")
    assert cache.find("other", alone=True) is None


def test_a_few_contexts_of_a_text_are_enough() -> None:
    cache = cache_of(9)
    for number in range(CONTEXTS):
        assert cache.wants("text", f"{number}")
        cache.add("text", f"{number}", random_kv(1, number), "a")
        assert not cache.wants("text", f"{number}"), "it is in the mean already"
    assert not cache.wants("text", "more")
    pending = cache.claim(f"other.{READ}", object(), 0)
    assert pending is not None
    assert not cache.wants("other", "more"), "nothing is there yet to be averaged with"


# --- pending entries and views ---


def test_an_entry_is_pending_until_its_owner_has_computed_it() -> None:
    cache, source = cache_of(9), Source()
    entry = cache.claim("text.here", source, 0, "a")
    assert entry is not None
    assert (entry.pending, entry.node) == (source, "a")
    assert cache.claim("text.here", object(), 0) is None
    assert cache.get("text.here") is None
    entry.resolve(source, range(3, 7))
    assert (cache.tiers.nbytes, source.copies) == (0, 0)
    for _ in range(2):
        assert equal(cache.get("text.here"), random_kv(4))
    assert (cache.tiers.nbytes, source.copies) == (4 * TOKEN, 1)
    cache.detach(entry)
    assert (len(cache._entries), source.copies) == (1, 1)


@pytest.mark.parametrize("how", ["abandon", "detach"])
def test_what_was_not_computed_is_gone_with_its_owner(how: str) -> None:
    cache = cache_of(9)
    entry = cache.claim("text.here", object(), 0)
    assert entry is not None
    getattr(cache, how)(entry)
    getattr(cache, how)(entry)
    assert (len(cache._entries), cache.find("text", alone=False)) == (0, None)
    assert cache.why("text.here") == (NOT_MADE if how == "abandon" else GONE)
    assert cache.claim("text.here", object(), 0) is not None


def test_a_view_is_copied_when_its_sequence_ends() -> None:
    cache, source = cache_of(4), Source()
    for key in ("text.here", "more.here"):
        entry = cache.claim(key, source, 0)
        assert entry is not None
        entry.resolve(source, range(3))
        cache.detach(entry)
    assert source.copies == 2
    assert "text.here" not in cache, "the latest has its room"
    large = cache.claim("large.here", source, 0)
    assert large is not None
    large.resolve(source, range(5))
    cache.detach(large)
    assert ("large.here" in cache, cache.why("large.here")) == (False, NO_ROOM)
    assert "more.here" in cache


# --- messages ---


def test_a_message_goes_with_its_last_reader() -> None:
    cache, source = cache_of(4), Source()
    entry = cache.publish("m", source, range(4), 2)
    assert cache.publish("m", source, range(4), 1) is entry
    assert (cache.tiers.nbytes, cache.tiers.pinned) == (0, 0)
    assert equal(cache.get("m"), random_kv(4))
    assert cache.tiers.pinned == 4 * TOKEN
    assert not cache.put("text.here", random_kv(1)), "who has readers stays"
    cache.retain("m")
    for left in (3, 2, 1):
        assert "m" in cache, left
        cache.release("m")
    cache.release("m")
    assert (cache.get("m"), cache.why("m")) == (None, GONE)
    cache.release("m")


def test_a_message_that_nobody_waits_for_is_not_copied() -> None:
    cache, source = cache_of(4), Source()
    entry = cache.publish("m", source, range(4), 1)
    cache.release("m")
    cache.detach(entry)
    assert (len(cache._entries), source.copies) == (0, 0)
    late = cache.publish("late", source, range(2), 1)
    cache.detach(late)
    assert equal(cache.get("late"), random_kv(2))


# --- budget ---


def test_the_least_recently_used_goes_and_those_without_readers_before_all() -> None:
    cache = cache_of(5)
    cache.put("a", random_kv(2, 1))
    cache.put("b", random_kv(2, 2))
    assert cache.put("a", random_kv(2, 9)), "it is there"
    assert equal(cache.get("a"), random_kv(2, 1))
    cache.put("c", random_kv(2, 3))
    assert ["a" in cache, "b" in cache, "c" in cache] == [True, False, True]
    cache.retain("a")
    cache.put("d", random_kv(3))
    assert ["a" in cache, "c" in cache, "d" in cache] == [True, False, True]
    assert not cache.put("e", random_kv(4)), "it cannot fit, so nobody goes"
    assert ("d" in cache, cache.tiers.nbytes) == (True, 5 * TOKEN)


# --- tiers ---


def test_what_leaves_the_device_comes_back_when_it_is_asked_for(tmp_path: Path) -> None:
    cache = SegmentCache(lambda: 4 * TOKEN, [host(3), disk(tmp_path)])
    for seed, key in enumerate("abc"):
        cache.put(key, random_kv(3, seed))
    assert [level(cache, key) for key in "abc"] == [2, 1, 0]
    assert equal(cache.get("a"), random_kv(3, 0))
    assert [level(cache, key) for key in "abc"] == [0, 2, 1]
    assert equal(cache.get("b"), random_kv(3, 1))
    cache.check_integrity()


def test_what_another_process_left_on_disk_is_found(tmp_path: Path) -> None:
    """Texts are written at once, with what is to be known of them; messages are not."""
    first = SegmentCache(lambda: 9 * TOKEN, [disk(tmp_path)])
    first.add("a", "here", random_kv(2, 0), "reader")
    first.add("a", "there", random_kv(2, 1), "reader")
    first.put(f"b.{ALONE}", random_kv(2, 2))
    first.get(first.publish("message", Source(), range(2), 1).key)
    mean = first.get(f"a.{READ}")
    written(first)
    second = SegmentCache(lambda: 2 * TOKEN, [disk(tmp_path)])
    assert len(second._entries) == 2
    entry = second.find("a", alone=False)
    assert entry is not None
    assert (entry.node, entry.contexts, entry.kind) == ("reader", ("here", "there"), "mean")
    found = second.get(entry.key)
    assert equal(found, mean)
    assert torch.equal(found.spread, mean.spread)  # type: ignore[union-attr, arg-type]
    assert second.tiers.nbytes == 0, "with its spread it is larger than the device"
    small = SegmentCache(lambda: TOKEN, [disk(tmp_path, 1)])
    written(small)
    assert (len(small._entries), list(tmp_path.iterdir())) == (0, [])


def test_what_was_used_last_stays_longest_on_disk(tmp_path: Path) -> None:
    first = SegmentCache(lambda: 9 * TOKEN, [disk(tmp_path)])
    for key in "abc":
        first.put(key, random_kv(2))
        written(first)
    for number, key in enumerate("bca"):
        os.utime(tmp_path / f"{key}.kv", (number, number))
    second = SegmentCache(lambda: 9 * TOKEN, [disk(tmp_path)])
    second.get("b")
    assert [one.key for one in disk(tmp_path).known()] == ["c", "a", "b"]


def test_forgetting_leaves_what_is_on_disk(tmp_path: Path) -> None:
    cache = SegmentCache(lambda: 9 * TOKEN, [disk(tmp_path)])
    cache.put("a", random_kv(2))
    cache.clear()
    written(cache)
    assert (len(cache._entries), len(disk(tmp_path).known())) == (0, 1)


def test_kv_may_be_written_in_another_dtype(tmp_path: Path) -> None:
    half = Disk(tmp_path, lambda: 99 * TOKEN, CPU, torch.bfloat16)
    cache = SegmentCache(lambda: 9 * TOKEN, [half])
    cache.add("a", "here", random_kv(2), "reader")
    cache.add("a", "there", random_kv(2, 1), "reader")
    half.flush()
    kept = disk(tmp_path).load(f"a.{READ}", None)
    assert (kept.keys.dtype, kept.values.dtype) == (torch.bfloat16, torch.bfloat16)
    assert kept.spread is not None
    assert kept.spread.dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"),
            "its checksum is another",
        ),
    ],
    ids=["gone", "changed"],
)
def test_a_damaged_file_is_as_good_as_none_and_the_reason_is_kept(
    tmp_path: Path, damage: object, why: str
) -> None:
    cache = SegmentCache(lambda: 2 * TOKEN, [disk(tmp_path)])
    cache.put("a", random_kv(2))
    cache.put("b", random_kv(2))
    written(cache)
    file = tmp_path / "a.kv"
    damage(file)  # type: ignore[operator]
    assert cache.get("a") is None
    assert cache.why("a").startswith("its KV, kept on the disk, is ")
    assert why in cache.why("a")
    written(cache)
    assert ("a" in cache, file.exists()) == (False, False)


def test_a_full_disk_loses_what_is_not_needed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    cache = SegmentCache(lambda: 2 * TOKEN, [disk(tmp_path)])
    monkeypatch.setattr("kvcomm.kv.tiers.save_tensors", full)
    cache.put("a", random_kv(2))
    assert cache.put("b", random_kv(2))
    written(cache)
    assert cache.get("a") is None
    assert "kept on the disk, is of no use: could not be written ([Errno 28] No space" in cache.why(
        "a"
    )
    assert cache.get("b") is not None


def test_the_device_is_trimmed_when_its_budget_shrinks(tmp_path: Path) -> None:
    budget = [6 * TOKEN]
    cache = SegmentCache(lambda: budget[0], [disk(tmp_path)])
    for key in "abc":
        cache.put(key, random_kv(2))
    budget[0] = 3 * TOKEN
    cache.tiers.trim()
    assert [level(cache, key) for key in "abc"] == [1, 1, 0]
    budget[0] = 6 * TOKEN
    cache.get("a")
    cache.tiers.halve()
    assert cache.tiers.nbytes == 2 * TOKEN


# --- anything in any order ---

TEXTS, MESSAGES = [f"{name}.here" for name in "abcd"], ["m1", "m2"]
TEXT, MESSAGE = st.sampled_from(TEXTS), st.sampled_from(MESSAGES)
KEY = st.sampled_from(TEXTS + MESSAGES)


class CacheMachine(RuleBasedStateMachine):
    """Whatever happens, KV is what it was, what is held has its readers, and budgets hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.budget = 8
        lower = [host(4), disk(self.folder, 6)]
        self.cache = SegmentCache(lambda: self.budget * TOKEN, lower)
        self.readers = dict.fromkeys(TEXTS + MESSAGES, 0)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def tokens(self, key: str) -> int:
        return 1 + sum(map(ord, key)) % 4

    def kv(self, key: str) -> KV:
        return random_kv(self.tokens(key), sum(map(ord, key)))

    def source(self, key: str) -> Source:
        return Source(sum(map(ord, key)))

    @rule(key=TEXT)
    def put(self, key: str) -> None:
        self.cache.put(key, self.kv(key))
        self.forget_lost()

    @rule(key=TEXT)
    def claim(self, key: str) -> None:
        known = key in self.cache
        assert (self.cache.claim(key, object(), 0) is None) == known

    @rule(key=TEXT, end=st.sampled_from(["resolve", "abandon", "detach"]))
    def settle(self, key: str, end: str) -> None:
        entry = self.cache._entries.get(key)
        if entry is None or (end == "resolve" and entry.pending is None):
            return
        if end == "resolve":
            entry.resolve(self.source(key), range(self.tokens(key)))
        else:
            getattr(self.cache, end)(entry)
        self.forget_lost()

    @rule(key=MESSAGE, readers=st.integers(1, 2))
    def publish(self, key: str, readers: int) -> None:
        self.cache.publish(key, self.source(key), range(self.tokens(key)), readers)
        self.readers[key] += readers

    @rule(key=KEY)
    def retain(self, key: str) -> None:
        self.cache.retain(key)
        self.readers[key] += key in self.known

    @rule(key=KEY)
    def release(self, key: str) -> None:
        self.cache.release(key)
        self.readers[key] = max(self.readers[key] - 1, 0)
        assert key not in MESSAGES or self.readers[key] or key not in self.known

    @rule(key=KEY)
    def get(self, key: str) -> None:
        found = self.cache.get(key)
        assert found is None or equal(found, self.kv(key))
        self.forget_lost()

    @rule(key=MESSAGE)
    def detach(self, key: str) -> None:
        if entry := self.cache._entries.get(key):
            self.cache.detach(entry)
            self.forget_lost()

    @rule(budget=st.integers(2, 10))
    def resize(self, budget: int) -> None:
        self.budget = budget
        self.cache.tiers.trim()
        pinned = self.cache.tiers.pinned
        self.budget = max(budget, -(-pinned // TOKEN))

    @property
    def known(self) -> set[str]:
        return {key for key in self.readers if key in self.cache}

    def forget_lost(self) -> None:
        """What was a view, and had no room when it was copied, is lost to its readers as well."""
        for key, readers in self.readers.items():
            if readers and key not in self.cache:
                assert self.cache.why(key) in (GONE, NO_ROOM, NOT_MADE)
                self.readers[key] = 0

    @invariant()
    def it_is_as_expected(self) -> None:
        self.cache.check_integrity()
        for key, readers in self.readers.items():
            assert not readers or self.cache._entries[key].refs == readers
        # Nothing lies on disk that the cache does not know.
        written(self.cache)
        files = {path.stem for path in self.folder.iterdir()}
        assert files == {key for key in self.known if self.cache._entries[key].saved}


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = CacheMachine.TestCase
