"""The KV store: position-free KV by content address, with pins and a byte budget."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvcomm.kv.tensor import KV


def content_key(*parts: object) -> str:
    """The address of KV that depends on nothing but `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


@dataclass
class _Entry:
    nbytes: int
    kv: KV | None = None
    make: Callable[[], KV] | None = None
    pins: int = 0


class Store:
    """Keeps KV under its key until the budget needs the room.

    An entry may be put as a recipe (`make`) and is materialised when somebody first asks for it:
    a message that nobody realigns costs nothing. Pinned entries are never evicted; the others go
    in least-recently-used order. A recipe that was never needed goes with its last pin, because
    it holds on to its producer's row. Thread-safe; recipes run on the thread that calls `get`.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def put(self, key: str, kv: KV) -> bool:
        """Keep `kv` under `key`; False when pinned entries leave no room for it."""
        with self._lock:
            return self._admit(key, _Entry(kv.nbytes, kv=kv))

    def put_recipe(self, key: str, make: Callable[[], KV], nbytes: int, pins: int) -> bool:
        """Keep a recipe for `nbytes` of KV, pinned `pins` times; False when there is no room."""
        with self._lock:
            if key in self._entries:
                self._entries[key].pins += pins
                return True
            return pins > 0 and self._admit(key, _Entry(nbytes, make=make, pins=pins))

    def _admit(self, key: str, entry: _Entry) -> bool:
        old = self._entries.get(key)
        if old is not None:
            entry.pins += old.pins
        room = self.budget - self.nbytes + (old.nbytes if old else 0)
        others = [(k, e) for k, e in self._entries.items() if not e.pins and k != key]
        # Nothing is evicted for an entry that will not fit all the same.
        if room + sum(e.nbytes for _, e in others) < entry.nbytes:
            return False
        for other, candidate in others:
            if room >= entry.nbytes:
                break
            room += candidate.nbytes
            del self._entries[other]
        self._entries[key] = entry
        self._entries.move_to_end(key)
        return True

    def get(self, key: str) -> KV | None:
        """The KV under `key`, or None when it is not (or no longer) here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            if entry.kv is None:
                assert entry.make is not None
                entry.kv, entry.make = entry.make(), None
            return entry.kv

    def pin(self, key: str) -> bool:
        """Keep `key` from eviction until `unpin`; False when it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            entry.pins += 1
            return True

    def unpin(self, key: str) -> None:
        """Undo one pin. Unknown keys are ignored: the entry may never have been admitted."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            entry.pins -= 1
            if entry.pins <= 0:
                entry.pins = 0
                if entry.kv is None:
                    del self._entries[key]

    def drop(self, key: str) -> None:
        """Forget one entry, pinned or not: its consumers will compute it."""
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries; a recipe counts as what it will make."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        assert self.nbytes <= self.budget
        for entry in self._entries.values():
            assert entry.pins >= 0
            assert (entry.kv is None) != (entry.make is None)
            assert entry.kv is not None or entry.pins > 0
            assert entry.kv is None or entry.kv.nbytes == entry.nbytes
