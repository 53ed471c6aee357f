"""Where cached KV lies: on the model's device, in the host's memory, on disk."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from kvcomm.kv.files import header_of, load_tensors, save_tensors
from kvcomm.kv.tensor import KV

log = logging.getLogger(__name__)

FORM = "kvcomm-kv-3"
SUFFIX = ".kv"
GONE = "its KV has left the segment cache"
# So many bytes may wait to be written; who brings more waits.
UNWRITTEN = 256 << 20


class Tier(Protocol):
    """One level. `held` is what is remembered of KV that is kept there."""

    name: str
    budget: Callable[[], int]

    def keep(self, key: str, kv: KV, about: Mapping[str, str]) -> object:
        """Take `kv` in, and what is said about it; returns `held`."""

    def load(self, key: str, held: object) -> KV:
        """The KV again, on the model's device. Raises `ValueError` when it is damaged or gone."""

    def forget(self, key: str, held: object) -> None:
        """Let go of it."""


class Device:
    """The memory in which the model computes."""

    name = "the device"

    def __init__(self, budget: Callable[[], int]) -> None:
        self.budget = budget

    def keep(self, key: str, kv: KV, about: Mapping[str, str]) -> object:
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

    def keep(self, key: str, kv: KV, about: Mapping[str, str]) -> object:
        """A copy off the device."""
        return kv.to(torch.device("cpu"))

    def load(self, key: str, held: object) -> KV:
        """A copy on the device."""
        return super().load(key, held).to(self._device)


def files_in(folder: Path) -> list[tuple[Path, int, float]]:
    """The files with KV in a folder, their bytes and when each was used last, the oldest first."""
    found = []
    for path in folder.glob("*" + SUFFIX):
        with suppress(OSError):  # another process may have removed it
            stat = path.lstat()
            found.append((path, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda file: file[2])


class OnDisk(NamedTuple):
    """One file: its key, bytes, when it was used last, and what is said about it."""

    key: str
    nbytes: int
    used: float
    about: Mapping[str, str]


class Disk:
    """A folder with one checksummed file for every entry, each written in one step.

    Names are content addresses: what another process has left there is the same KV. Files are
    written and removed on a thread of their own; until then KV is served from memory. `dtype` is
    what keys and values are written in (None: as they are). `mark` is called when the folder is
    there, before the first file.
    """

    name = "the disk"

    def __init__(
        self,
        folder: Path,
        budget: Callable[[], int],
        device: torch.device,
        dtype: torch.dtype | None = None,
        mark: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.budget, self._device, self._dtype = folder, budget, device, dtype
        self._mark = mark
        self._unwritten: dict[str, KV] = {}
        self._failed: dict[str, str] = {}
        self._writer = ThreadPoolExecutor(1, "kvcomm-disk")
        self._last: Future[None] | None = None

    def known(self) -> list[OnDisk]:
        """What is there, the least recently used first. Files of another format do not count."""
        found = []
        for path, nbytes, used in files_in(self.folder):
            with suppress(OSError, ValueError):
                found.append(OnDisk(path.stem, nbytes, used, header_of(path, FORM)))
        return found

    def keep(self, key: str, kv: KV, about: Mapping[str, str]) -> object:
        """Have the file written. What fails is known when the KV is asked for."""
        while sum(one.nbytes for one in list(self._unwritten.values())) > UNWRITTEN:
            self.flush()
        self._unwritten[key] = kv
        self._last = self._writer.submit(self._write, key, kv, dict(about))
        return None

    def _write(self, key: str, kv: KV, about: dict[str, str]) -> None:
        if self._unwritten.get(key) is not kv:
            return  # a newer one comes behind
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mark()
            tensors = kv.tensors
            if self._dtype is not None:
                tensors |= {name: tensors[name].to(self._dtype) for name in ("keys", "values")}
            save_tensors(self._path(key), tensors, FORM, about)
            self._failed.pop(key, None)
        except OSError as error:
            self._failed[key] = f"could not be written ({error})"
            log.warning("KV could not be written to %s: %s", self.folder, error)
        finally:
            if self._unwritten.get(key) is kv:
                del self._unwritten[key]

    def load(self, key: str, held: object) -> KV:
        """Read the file."""
        kv = self._unwritten.get(key)
        if kv is not None:
            return kv
        if key in self._failed:
            raise ValueError(self._failed[key])
        tensors, _ = load_tensors(self._path(key), FORM, str(self._device))
        if set(tensors) - {"spread"} != {"keys", "values"}:
            raise ValueError("holds other tensors than keys and values")
        with suppress(OSError):
            os.utime(self._path(key))
        return KV(**tensors)

    def forget(self, key: str, held: object) -> None:
        """Remove the file; another process may have done it."""
        self._unwritten.pop(key, None)
        self._failed.pop(key, None)
        with suppress(RuntimeError):  # closed
            self._last = self._writer.submit(self._path(key).unlink, missing_ok=True)

    def flush(self) -> None:
        """Wait until everything is written."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"


@dataclass(eq=False)
class Stored:
    """KV in a tier: `kv` is what the one at `level` remembers of it.

    `refs` counts readers that are still to come: while there are any it is not lost. It `lasts`
    beyond this process, where there is a disk; `saved` are its bytes there.
    """

    key: str
    nbytes: int
    level: int = 0
    kv: object = None
    refs: int = 0
    saved: int = 0

    @property
    def lasts(self) -> bool:
        """Whether it is written to disk at once, and stays there."""
        return False

    @property
    def about(self) -> Mapping[str, str]:
        """What is to be known of it besides its KV."""
        return {}


class Tiers:
    """The levels, the device first, and what each holds, the least recently used first.

    When a level is full, its oldest entries go down to the next one, those without readers to come
    first. What there is no level for is `lost`, but never what has readers.
    """

    def __init__(self, levels: Sequence[Tier], lost: Callable[[Stored, str], None]) -> None:
        self._levels = tuple(levels)
        self._lost = lost
        self._held: OrderedDict[str, Stored] = OrderedDict()
        last = levels[-1]
        self.disk = last if isinstance(last, Disk) else None
        self._disk_level = len(levels) - 1 if self.disk else -1

    def adopt(self, entry: Stored) -> None:
        """Count an entry that an earlier process left on disk."""
        entry.level, entry.saved = self._disk_level, entry.nbytes
        self._held[entry.key] = entry

    def keep(self, entry: Stored, kv: KV) -> bool:
        """Keep KV on the device; False when there is no room for it. What lasts is written, too."""
        self.forget(entry, saved=False)  # what was there is replaced
        if not self._make_room(0, kv.nbytes):
            self._unsave(entry)
            return False
        entry.kv, entry.level, entry.nbytes = kv, 0, kv.nbytes
        self._held[entry.key] = entry
        if entry.lasts and self.disk is not None and self._make_room(self._disk_level, kv.nbytes):
            self.disk.keep(entry.key, kv, entry.about)
            entry.saved = kv.nbytes
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
            if entry.level != self._disk_level:
                tier.forget(entry.key, entry.kv)
            elif not entry.lasts:
                self._unsave(entry)
            entry.kv, entry.level, entry.nbytes = kv, 0, kv.nbytes
        return kv

    def forget(self, entry: Stored, *, saved: bool = True) -> None:
        """Let go of an entry, if it is held; what is `saved` of it, too."""
        if self._held.pop(entry.key, None) is None:
            return
        if entry.level != self._disk_level:
            self._levels[entry.level].forget(entry.key, entry.kv)
        if saved:
            self._unsave(entry)

    def _unsave(self, entry: Stored) -> None:
        """Let go of what is on disk."""
        if entry.saved and self.disk is not None:
            self.disk.forget(entry.key, None)
        entry.saved = 0

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
        """What takes room at a level: on disk also what is nearer as well."""
        # A copy, because other threads ask how much is pinned.
        held = list(self._held.values())
        if level == self._disk_level:
            return [entry for entry in held if entry.saved]
        return [entry for entry in held if entry.level == level]

    def _size(self, entry: Stored, level: int) -> int:
        return entry.saved if level == self._disk_level else entry.nbytes

    def _make_room(self, level: int, nbytes: int) -> bool:
        """Have `nbytes` free at `level`; moves nothing for an entry that will not fit anyway."""
        here = self._at(level)
        free = self._levels[level].budget() - sum(self._size(entry, level) for entry in here)
        if free >= nbytes:
            return True
        last = level + 1 == len(self._levels)
        movable = sum(self._size(entry, level) for entry in here if not (entry.refs and last))
        if free + movable < nbytes:
            return False
        for entry in sorted(here, key=lambda entry: entry.refs > 0):
            if free >= nbytes:
                break
            size = self._size(entry, level)
            if self._move_down(entry, level):
                free += size
        return free >= nbytes

    def _move_down(self, entry: Stored, level: int) -> bool:
        """Put an entry into the next tier, or lose it. False: it has readers, and has to stay."""
        if level == self._disk_level:
            if entry.level != level:  # it is nearer as well
                self._unsave(entry)
                return True
        else:
            below, tier = level + 1, self._levels[level]
            on_disk = below == self._disk_level
            if on_disk and entry.saved:
                tier.forget(entry.key, entry.kv)
                entry.kv, entry.level = None, below
                return True
            if below < len(self._levels) and self._make_room(below, entry.nbytes):
                kept = self._levels[below].keep(
                    entry.key, tier.load(entry.key, entry.kv), entry.about
                )
                tier.forget(entry.key, entry.kv)
                entry.kv, entry.level = kept, below
                entry.saved = entry.nbytes if on_disk else entry.saved
                return True
        if entry.refs:
            return False
        self._lost(entry, GONE)
        return True

    def check_integrity(self) -> None:
        """Raise `AssertionError` when an invariant is broken. For tests."""
        for level, tier in enumerate(self._levels):
            assert sum(self._size(entry, level) for entry in self._at(level)) <= tier.budget()
        for key, entry in self._held.items():
            assert key == entry.key
            assert not isinstance(entry.kv, KV) or entry.kv.nbytes == entry.nbytes
