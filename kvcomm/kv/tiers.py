"""Where cached KV lies: on the model's device, in the host's memory, on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kvcomm.kv.files import load_tensors, save_tensors
from kvcomm.kv.tensor import KV

FORM = "kvcomm-kv-2"
GONE = "its KV has left the segment cache"


class Tier(Protocol):
    """One level. `held` is what is remembered of KV that is kept there."""

    name: str
    budget: Callable[[], int]

    def keep(self, key: str, kv: KV) -> object:
        """Take `kv` in; returns `held`. Raises `OSError` when that cannot be done."""

    def load(self, key: str, held: object) -> KV:
        """The KV again, on the model's device. Raises `ValueError` when it is damaged or gone."""

    def forget(self, key: str, held: object) -> None:
        """Let go of it."""


class Device:
    """The memory in which the model computes."""

    name = "the device"

    def __init__(self, budget: Callable[[], int]) -> None:
        self.budget = budget

    def keep(self, key: str, kv: KV) -> object:
        """The tensors themselves."""
        return kv

    def load(self, key: str, held: object) -> KV:
        """The tensors themselves."""
        assert isinstance(held, KV)
        return held

    def forget(self, key: str, held: object) -> None:
        """Nothing to do: the memory goes with the last reference."""


class HostMemory(Device):
    """The host's memory, for models on an accelerator."""

    name = "the host"

    def __init__(self, budget: Callable[[], int], device: torch.device) -> None:
        super().__init__(budget)
        self._device = device

    def keep(self, key: str, kv: KV) -> object:
        """A copy off the device."""
        return kv.to(torch.device("cpu"))

    def load(self, key: str, held: object) -> KV:
        """A copy on the device."""
        return super().load(key, held).to(self._device)


class Disk:
    """A folder with one checksummed file for every entry, written in one step.

    Names are content addresses: what another process has left there is the same KV.
    """

    name = "the disk"

    def __init__(self, folder: Path, budget: Callable[[], int], device: torch.device) -> None:
        self.folder, self.budget, self._device = folder, budget, device

    def known(self) -> dict[str, int]:
        """What is there: bytes by key, the oldest first."""
        files = [(path, path.lstat()) for path in self.folder.glob("*.kv")]
        files.sort(key=lambda item: item[1].st_mtime)
        return {path.stem: stat.st_size for path, stat in files}

    def keep(self, key: str, kv: KV) -> object:
        """Write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path(key), {"keys": kv.keys, "values": kv.values}, FORM)
        return None

    def load(self, key: str, held: object) -> KV:
        """Read the file."""
        tensors, _ = load_tensors(self._path(key), FORM, str(self._device))
        if set(tensors) != {"keys", "values"}:
            raise ValueError("holds other tensors than keys and values")
        return KV(**tensors)

    def forget(self, key: str, held: object) -> None:
        """Remove the file; another process may have done it."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.kv"


@dataclass(eq=False)
class Stored:
    """KV in a tier: `kv` is what the one at `level` remembers of it.

    `refs` counts readers that are still to come: while there are any it is not lost.
    """

    key: str
    nbytes: int
    level: int = 0
    kv: object = None
    refs: int = 0


class Tiers:
    """The levels, the device first, and what each holds, the least recently used first.

    When a level is full, its oldest entries go down to the next one, those without readers to come
    first. What there is no level for is `lost`, but never what has readers.
    """

    def __init__(self, levels: Sequence[Tier], lost: Callable[[Stored, str], None]) -> None:
        self._levels = tuple(levels)
        self._lost = lost
        self._held: OrderedDict[str, Stored] = OrderedDict()

    def known(self) -> Iterator[tuple[int, str, int]]:
        """What an earlier process left on disk: level, key and bytes."""
        for level, tier in enumerate(self._levels):
            if isinstance(tier, Disk):
                yield from ((level, key, nbytes) for key, nbytes in tier.known().items())

    def adopt(self, entry: Stored) -> None:
        """Count an entry that is at its level already."""
        self._held[entry.key] = entry

    def keep(self, entry: Stored, kv: KV) -> bool:
        """Keep KV on the device; False when there is no room for it."""
        if not self._make_room(0, kv.nbytes):
            return False
        entry.kv, entry.level, entry.nbytes = kv, 0, kv.nbytes
        self._held[entry.key] = entry
        return True

    def load(self, entry: Stored) -> KV:
        """The KV of an entry, which goes up if there is room. Raises `ValueError`."""
        tier = self._levels[entry.level]
        self._held.move_to_end(entry.key)
        try:
            kv = tier.load(entry.key, entry.kv)
        except ValueError as error:
            raise ValueError(f"its KV, kept on {tier.name}, is of no use: {error}") from None
        if entry.level and self._make_room(0, kv.nbytes) and entry.key in self._held:
            self._levels[entry.level].forget(entry.key, entry.kv)
            entry.kv, entry.level, entry.nbytes = kv, 0, kv.nbytes
        return kv

    def forget(self, entry: Stored) -> None:
        """Let go of an entry, if it is held."""
        if self._held.pop(entry.key, None):
            self._levels[entry.level].forget(entry.key, entry.kv)

    def trim(self) -> None:
        """Move down what levels have no room for any more."""
        for level in range(len(self._levels)):
            self._make_room(level, 0)

    def halve(self) -> None:
        """Move half of what is on the device down: memory has run out."""
        free = self._levels[0].budget() - self.nbytes
        self._make_room(0, free + (self.nbytes - self.pinned) // 2)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(entry.nbytes for entry in self._at(0))

    @property
    def pinned(self) -> int:
        """Bytes on the device that have readers to come."""
        return sum(entry.nbytes for entry in self._at(0) if entry.refs)

    def _at(self, level: int) -> list[Stored]:
        # A copy, because other threads ask how much is pinned.
        return [entry for entry in list(self._held.values()) if entry.level == level]

    def _make_room(self, level: int, nbytes: int) -> bool:
        """Have `nbytes` free at `level`; moves nothing for an entry that will not fit anyway."""
        here = self._at(level)
        free = self._levels[level].budget() - sum(entry.nbytes for entry in here)
        if free >= nbytes:
            return True
        last = level + 1 == len(self._levels)
        movable = sum(entry.nbytes for entry in here if not (entry.refs and last))
        if free + movable < nbytes:
            return False
        for entry in sorted(here, key=lambda entry: entry.refs > 0):
            if free >= nbytes:
                break
            if self._move_down(entry):
                free += entry.nbytes
        return free >= nbytes

    def _move_down(self, entry: Stored) -> bool:
        """Put an entry into the next tier, or lose it. False: it has readers, and has to stay."""
        tier, below, reason = self._levels[entry.level], entry.level + 1, GONE
        if below < len(self._levels) and self._make_room(below, entry.nbytes):
            try:
                kept = self._levels[below].keep(entry.key, tier.load(entry.key, entry.kv))
            except (OSError, ValueError) as error:
                reason = f"{GONE}: {self._levels[below].name} did not take it ({error})"
            else:
                tier.forget(entry.key, entry.kv)
                entry.kv, entry.level = kept, below
                return True
        if entry.refs:
            return False
        self._lost(entry, reason)
        return True

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        for level, tier in enumerate(self._levels):
            assert sum(entry.nbytes for entry in self._at(level)) <= tier.budget()
        for key, entry in self._held.items():
            assert key == entry.key
            assert not isinstance(entry.kv, KV) or entry.kv.nbytes == entry.nbytes
