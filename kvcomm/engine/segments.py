"""The segment cache: base KV of texts and messages, by content, in tiers.

A text may have base KV from several contexts: alone, or as some prompt read it. An entry is
*pending* while its first reader computes it. Behind that it is a view of that reader's sequence,
copied when somebody needs it or the sequence ends. Belongs to the engine's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvcomm.kv import KV, content_key
from kvcomm.kv.tiers import Device, Disk, Tier

# The context of a text that was computed behind a bare chat header.
ALONE = "alone"
# How many contexts of a text are kept, beside that.
CONTEXTS = 1
# How many entries that are gone are remembered, with the reason.
REMEMBERED = 1000
GONE = "its KV has left the segment cache"
NO_ROOM = "no room for its base KV"
NOT_MADE = "its base KV could not be computed"


def text_key(fingerprint: str, namespace: str, ids: Sequence[int]) -> str:
    """The address of a text, whatever its context."""
    return content_key(fingerprint, namespace, "text", tuple(ids))


class KVSource(Protocol):
    """A sequence whose KV an entry is a view of."""

    def position_free(self, slots: Sequence[int]) -> KV: ...


@dataclass(eq=False)
class Entry:
    """One entry. `kv` is what the tier at `level` remembers of it, once it is no `view` any more.

    `refs` counts readers that are still to come: while there are any it is not lost. `node` is the
    agent whose prompt it is from. A `message` goes with its last reader, a text stays while there
    is room.
    """

    key: str
    nbytes: int
    pending: object = None  # the sequence that computes it
    view: tuple[KVSource, Sequence[int]] | None = None
    kv: object = None
    level: int = 0
    refs: int = 0
    node: str = ""
    message: bool = False

    @property
    def text(self) -> str:
        """The address of its text."""
        return self.key.partition(".")[0]

    @property
    def context(self) -> str:
        """Where it was computed."""
        return self.key.partition(".")[2]

    @property
    def held(self) -> bool:
        """Whether its KV is a tier's, not another sequence's."""
        return self.pending is None and self.view is None


@dataclass
class SegmentCache:
    """Keeps KV under its key until its tiers need the room.

    When a tier is full, the least recently used entries go down to the next one, those without
    readers to come first; behind the last tier they are forgotten, but never an entry with readers.
    """

    budget: Callable[[], int]
    lower: Sequence[Tier] = ()
    _entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    _contexts: dict[str, list[str]] = field(default_factory=dict)
    _lost: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._tiers: tuple[Tier, ...] = (Device(self.budget), *self.lower)
        for level, tier in enumerate(self._tiers):
            if isinstance(tier, Disk):
                for key, nbytes in tier.known().items():
                    self._admit(Entry(key, nbytes, level=level))
                self._make_room(level, 0)

    def find(self, text: str, *, alone: bool, here: str = "") -> Entry | None:
        """An entry of a text: computed alone, or in another context than `here`."""
        for key in self._contexts.get(text, ()):
            entry = self._entries[key]
            if (entry.context == ALONE) == alone and entry.context != here:
                return entry
        return None

    def wants(self, text: str) -> bool:
        """Whether one more context of the text would be kept."""
        known = [k for k in self._contexts.get(text, ()) if not k.endswith("." + ALONE)]
        return len(known) < CONTEXTS

    def claim(self, key: str, owner: object, nbytes: int, node: str = "") -> Entry | None:
        """A pending entry that `owner` computes; None where there is one already."""
        if key in self._entries:
            return None
        entry = Entry(key, nbytes, pending=owner, node=node)
        self._admit(entry)
        return entry

    def resolve(self, entry: Entry, source: KVSource, slots: Sequence[int]) -> None:
        """A pending entry is there: a view of `source`."""
        entry.pending, entry.view = None, (source, slots)

    def abandon(self, entry: Entry) -> None:
        """A pending entry, or a view, will not be there."""
        if self._entries.get(entry.key) is entry and not entry.held:
            self._forget(entry, NOT_MADE)

    def publish(self, key: str, source: KVSource, slots: Sequence[int], refs: int) -> Entry:
        """A message's KV, a view of `source`, for so many readers."""
        entry = self._entries.get(key)
        if entry is None:
            entry = Entry(key, 0, view=(source, slots), message=True)
            self._admit(entry)
        entry.refs += refs
        return entry

    def put(self, key: str, kv: KV) -> bool:
        """Keep `kv` under `key`; False when there is no room for it."""
        old = self._entries.get(key)
        if old is not None and old.held:
            return True
        entry = old or Entry(key, kv.nbytes)
        if not self._make_room(0, kv.nbytes):
            if old is not None:
                self._forget(old, NO_ROOM)
            return False
        entry.pending, entry.view, entry.kv, entry.nbytes = None, None, kv, kv.nbytes
        self._admit(entry)
        return True

    def get(self, key: str) -> KV | None:
        """The KV under `key`, or None when it is not (or no longer) here; see `why`."""
        entry = self._entries.get(key)
        if entry is None or entry.pending is not None:
            return None
        self._entries.move_to_end(key)
        if entry.view is not None:
            return self._copy(entry)
        try:
            kv = self._tiers[entry.level].load(key, entry.kv)
        except ValueError as error:
            self._forget(
                entry, f"its KV, kept on {self._tiers[entry.level].name}, is of no use: {error}"
            )
            return None
        if entry.level and self._make_room(0, kv.nbytes, keep=entry):
            self._tiers[entry.level].forget(key, entry.kv)
            entry.kv, entry.level, entry.nbytes = kv, 0, kv.nbytes
        return kv

    def _copy(self, entry: Entry) -> KV | None:
        assert entry.view is not None
        source, slots = entry.view
        kv = source.position_free(slots)
        if not self._make_room(0, kv.nbytes, keep=entry):
            self._forget(entry, NO_ROOM)
            return None
        entry.view, entry.kv, entry.nbytes = None, kv, kv.nbytes
        return kv

    def detach(self, entry: Entry) -> None:
        """The sequence that `entry` is a view of ends: copy what somebody may need."""
        if self._entries.get(entry.key) is not entry or entry.held:
            return
        if entry.pending is not None or (entry.message and not entry.refs):
            self._forget(entry, GONE)
        else:
            self._copy(entry)

    def retain(self, key: str) -> None:
        """One more reader is to come."""
        if entry := self._entries.get(key):
            entry.refs += 1

    def release(self, key: str) -> None:
        """A reader has done with it."""
        entry = self._entries.get(key)
        if entry is None or not entry.refs:
            return
        entry.refs -= 1
        if not entry.refs and entry.message:
            self._forget(entry, GONE)

    def why(self, key: str) -> str:
        """Why `get` found nothing under `key`."""
        return self._lost.get(key, GONE)

    def trim(self) -> None:
        """Move down what the device has no room for any more."""
        self._make_room(0, 0)

    def halve(self) -> None:
        """Move half of what is on the device down: memory has run out."""
        loose = sum(e.nbytes for e in self._at(0) if not e.refs)
        self._make_room(0, self.budget() - self.nbytes + loose // 2)

    def clear(self) -> None:
        """Forget everything."""
        for entry in list(self._entries.values()):
            self._forget(entry, GONE)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes on the device. Views take none of their own."""
        return sum(entry.nbytes for entry in self._at(0))

    @property
    def pinned(self) -> int:
        """Bytes on the device that cannot leave it."""
        return sum(entry.nbytes for entry in self._at(0) if entry.refs)

    def _at(self, level: int) -> list[Entry]:
        # A copy, because other threads ask how much is pinned.
        return [e for e in list(self._entries.values()) if e.held and e.level == level]

    def _admit(self, entry: Entry) -> None:
        self._lost.pop(entry.key, None)
        if entry.key not in self._entries and not entry.message:
            self._contexts.setdefault(entry.text, []).append(entry.key)
        self._entries[entry.key] = entry
        self._entries.move_to_end(entry.key)

    def _make_room(self, level: int, nbytes: int, keep: Entry | None = None) -> bool:
        """Have `nbytes` free at `level`; moves nothing for an entry that will not fit anyway."""
        here = [entry for entry in self._at(level) if entry is not keep]
        free = self._tiers[level].budget() - sum(entry.nbytes for entry in here)
        if free >= nbytes:
            return True
        last = level + 1 == len(self._tiers)
        movable = sum(entry.nbytes for entry in here if not (entry.refs and last))
        if free + movable < nbytes:
            return False
        for entry in sorted(here, key=lambda entry: entry.refs > 0):
            if free >= nbytes:
                break
            if self._move_down(entry):
                free += entry.nbytes
        return free >= nbytes

    def _move_down(self, entry: Entry) -> bool:
        """Put an entry into the next tier, or forget it. False: it has readers, and has to stay."""
        below, reason = entry.level + 1, GONE
        if below < len(self._tiers) and self._make_room(below, entry.nbytes):
            try:
                kv = self._tiers[entry.level].load(entry.key, entry.kv)
                kept = self._tiers[below].keep(entry.key, kv)
            except (OSError, ValueError) as error:
                reason = f"{GONE}: {self._tiers[below].name} did not take it ({error})"
            else:
                self._tiers[entry.level].forget(entry.key, entry.kv)
                entry.kv, entry.level = kept, below
                return True
        if entry.refs:
            return False
        self._forget(entry, reason)
        return True

    def _forget(self, entry: Entry, reason: str) -> None:
        del self._entries[entry.key]
        if not entry.message:
            contexts = self._contexts[entry.text]
            contexts.remove(entry.key)
            if not contexts:
                del self._contexts[entry.text]
        if entry.held:
            self._tiers[entry.level].forget(entry.key, entry.kv)
        entry.pending = entry.view = entry.kv = None
        self._lost[entry.key] = reason
        while len(self._lost) > REMEMBERED:
            self._lost.popitem(last=False)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        for level, tier in enumerate(self._tiers):
            assert sum(entry.nbytes for entry in self._at(level)) <= tier.budget()
        for key, entry in self._entries.items():
            assert key == entry.key
            assert entry.message or key in self._contexts[entry.text]
            assert entry.refs or not (entry.message and entry.held)
            if isinstance(entry.kv, KV):
                assert entry.kv.nbytes == entry.nbytes
        known = sum(not entry.message for entry in self._entries.values())
        assert known == sum(map(len, self._contexts.values()))
