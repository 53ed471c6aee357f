"""Where the store keeps KV: on the model's device, in the host's memory, on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from kvcomm.kv.files import load_tensors, save_tensors
from kvcomm.kv.tensor import KV

FORM = "kvcomm-kv-2"


class Tier(Protocol):
    """One level of the store. `held` is what the store remembers of an entry there."""

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


class Host(Device):
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
