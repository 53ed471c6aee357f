"""The KV store: position-free KV by content address, in tiers, with pins and budgets."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcomm.kv.tensor import KV
from kvcomm.kv.tiers import Device, Disk, Tier

# How many entries that are gone are remembered, with the reason.
REMEMBERED = 1000
GONE = "its KV has left the store"
NEVER = math.inf


def content_key(*parts: object) -> str:
    """The address of KV that depends on nothing but `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


@dataclass
class _Entry:
    """`held` by the tier at `level`, or still a recipe. `uses` has the step of every pin.

    A `passing` one goes with its last pin.
    """

    nbytes: int
    held: object = None
    make: Callable[[], KV] | None = None
    checksum: str = ""
    level: int = 0
    uses: list[float] = field(default_factory=list)
    expected: float = NEVER
    passing: bool = False

    @property
    def next_use(self) -> float:
        return min(self.uses, default=self.expected)


class Store:
    """Keeps KV under its key until its tiers need the room.

    An entry may be put as a recipe (`make`) and is materialised when somebody first asks for it:
    a message that nobody realigns costs nothing. Needed or not it goes with its last pin: it holds
    on to its producer's row, or is a copy that nobody else will ask for.

    Uses are steps of the engine's clock `now`, one for every answered call: a pin says at which
    step its reader is due. When a tier is full, entries go down to the next one: those without
    pins first, and of these what is needed latest, then what was used least recently. Behind the
    last tier they are forgotten, but pinned entries never are. Thread-safe; recipes run on the
    thread that calls `get`.
    """

    def __init__(
        self,
        budget: Callable[[], int],
        lower: Sequence[Tier] = (),
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        self._tiers: tuple[Tier, ...] = (Device(budget), *lower)
        self._now = now
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lost: OrderedDict[str, str] = OrderedDict()
        for level, tier in enumerate(self._tiers):
            if isinstance(tier, Disk):
                for key, nbytes in tier.known().items():
                    self._entries[key] = _Entry(nbytes, level=level)
                self._make_room(level, 0)

    def put(self, key: str, kv: KV, uses: Sequence[float] = ()) -> bool:
        """Keep `kv` under `key`; False when pinned entries leave no room for it.

        With `uses` it is pinned for them and goes with the last one, unless it was there before.
        """
        with self._lock:
            if uses and key in self._entries:
                self._entries[key].uses += uses
                return True
            entry = _Entry(kv.nbytes, held=kv, checksum=kv.checksum())
            entry.uses, entry.passing = list(uses), bool(uses)
            return self._admit(key, entry)

    def put_recipe(
        self, key: str, make: Callable[[], KV], nbytes: int, uses: Sequence[float]
    ) -> bool:
        """Keep a recipe for `nbytes` of KV, pinned for `uses`; False when there is no room."""
        with self._lock:
            if key in self._entries:
                self._entries[key].uses += uses
                return True
            entry = _Entry(nbytes, make=make, uses=list(uses), passing=True)
            return bool(uses) and self._admit(key, entry)

    def _admit(self, key: str, entry: _Entry) -> bool:
        old = self._entries.get(key)
        if old is not None:
            entry.uses += old.uses
            entry.expected = old.expected
        freed = old.nbytes if old and old.level == 0 else 0
        if not self._make_room(0, entry.nbytes - freed, keep=key):
            return False
        if old is not None and old.make is None:
            self._tiers[old.level].forget(key, old.held)
        self._entries[key] = entry
        self._entries.move_to_end(key)
        self._lost.pop(key, None)
        return True

    def _make_room(self, level: int, nbytes: int, keep: str = "") -> bool:
        """Have `nbytes` free at `level`; moves nothing for an entry that will not fit anyway."""
        free = self._tiers[level].budget() - self._used(level)
        if free >= nbytes:
            return True
        here = [(k, e) for k, e in self._entries.items() if e.level == level and k != keep]
        last = level + 1 == len(self._tiers)
        movable = sum(e.nbytes for _, e in here if not e.uses or not (last or e.make))
        if free + movable < nbytes:
            return False
        for key, entry in sorted(here, key=lambda item: self._stays(item[1])):
            if free >= nbytes:
                break
            if self._move_down(key, entry):
                free += entry.nbytes
        return free >= nbytes

    def _stays(self, entry: _Entry) -> tuple[bool, float]:
        """The order in which entries go. A use that was due and did not happen counts as none."""
        next_use = entry.next_use
        if not entry.uses and next_use < self._now():
            next_use = NEVER
        return bool(entry.uses), -next_use

    def _move_down(self, key: str, entry: _Entry) -> bool:
        """Put an entry into the next tier, or forget it. False: it is pinned and has to stay."""
        below, reason = entry.level + 1, GONE
        if below < len(self._tiers) and not entry.make and self._make_room(below, entry.nbytes):
            try:
                kv = self._tiers[entry.level].load(key, entry.held)
                held = self._tiers[below].keep(key, kv)
            except (OSError, ValueError) as error:
                reason = f"{GONE}: {self._tiers[below].name} did not take it ({error})"
            else:
                self._tiers[entry.level].forget(key, entry.held)
                entry.held, entry.level = held, below
                return True
        if entry.uses:
            return False
        self._forget(key, reason)
        return True

    def _forget(self, key: str, reason: str) -> None:
        entry = self._entries.pop(key)
        if entry.make is None:
            self._tiers[entry.level].forget(key, entry.held)
        self._lost[key] = reason
        while len(self._lost) > REMEMBERED:
            self._lost.popitem(last=False)

    def get(self, key: str, *, check: bool = False) -> KV | None:
        """The KV under `key`, or None when it is not (or no longer) here; see `why`.

        `check` compares it with the checksum taken when it came, and forgets what has changed.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            if entry.make is not None:
                kv = entry.make()
                entry.held, entry.make, entry.checksum = kv, None, kv.checksum()
                return kv
            try:
                kv = self._tiers[entry.level].load(key, entry.held)
                if check and entry.checksum and kv.checksum() != entry.checksum:
                    raise ValueError("damaged: its checksum is another")
            except ValueError as error:
                self._forget(key, f"its KV, kept on {self._tiers[entry.level].name}, is {error}")
                return None
            self._raise(key, entry, kv)
            return kv

    def _raise(self, key: str, entry: _Entry, kv: KV) -> None:
        """Bring what is in use up to the device, if there is room."""
        if entry.level and self._make_room(0, kv.nbytes, keep=key) and key in self._entries:
            self._tiers[entry.level].forget(key, entry.held)
            entry.held, entry.level, entry.nbytes = kv, 0, kv.nbytes
            entry.checksum = entry.checksum or kv.checksum()

    def why(self, key: str) -> str:
        """Why `get` found nothing under `key`."""
        with self._lock:
            return self._lost.get(key, GONE)

    def expect(self, key: str, use: float) -> None:
        """A call will ask for `key` at this step: it goes after what nobody is known to need."""
        with self._lock:
            if entry := self._entries.get(key):
                entry.expected = use

    def pin(self, key: str, use: float) -> bool:
        """Keep `key` until `unpin`, for a reader at this step; False when it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            entry.uses.append(use)
            return True

    def unpin(self, key: str, use: float) -> None:
        """Undo one pin. Unknown keys are ignored: the entry may never have been admitted."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.uses:
                return
            entry.uses.remove(use if use in entry.uses else min(entry.uses))
            if not entry.uses and entry.passing:
                self._forget(key, GONE)

    def trim(self) -> None:
        """Move down what the device has no room for any more."""
        with self._lock:
            self._make_room(0, 0)

    def halve(self) -> None:
        """Move half of what is on the device down: memory has run out."""
        with self._lock:
            free = self._tiers[0].budget() - self._used(0)
            loose = sum(e.nbytes for e in self._entries.values() if not e.level and not e.uses)
            self._make_room(0, free + loose // 2)

    def drop(self, key: str) -> None:
        """Forget one entry, pinned or not: its consumers will compute it."""
        with self._lock:
            if key in self._entries:
                self._forget(key, GONE)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for key in list(self._entries):
                self._forget(key, GONE)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes on the device; a recipe counts as what it will make."""
        with self._lock:
            return self._used(0)

    @property
    def pinned(self) -> int:
        """Bytes on the device that cannot leave it."""
        with self._lock:
            return sum(e.nbytes for e in self._entries.values() if e.uses and not e.level)

    def _used(self, level: int) -> int:
        return sum(e.nbytes for e in self._entries.values() if e.level == level)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        for level, tier in enumerate(self._tiers):
            assert self._used(level) <= tier.budget()
        for entry in self._entries.values():
            assert entry.make is None or (entry.uses and entry.held is None and not entry.level)
            assert entry.uses or not entry.passing
            if isinstance(entry.held, KV):
                assert entry.held.nbytes == entry.nbytes
