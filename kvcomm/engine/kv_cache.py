"""The KV cache on disk: a folder where one model keeps what it has read, between processes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from kvcomm.engine.models import cache_dir
from kvcomm.errors import UsageError
from kvcomm.kv.files import replace_file
from kvcomm.kv.tiers import FORM, Disk, files_in

MANIFEST = "manifest.json"
SIZE = 4 << 30


def root() -> Path:
    """Where the folders of all models are by default."""
    return cache_dir() / "kv"


@dataclass(frozen=True)
class KVCache:
    """Which folder, the most bytes in it, and what numbers are written as.

    Without a `folder` it is one of the user's cache, by model. `dtype` None: as they are computed.
    """

    folder: Path | None = None
    nbytes: int = SIZE
    dtype: str | None = None

    @classmethod
    def of(cls, value: KVCache | Path | str | None) -> KVCache | None:
        """As it is given: "default", a folder, or None."""
        if value is None or isinstance(value, KVCache):
            return value
        return cls() if value == "default" else cls(Path(value))

    def open(self, model: str, fingerprint: str, device: torch.device) -> Disk:
        """The folder, marked as this model's. Raises `UsageError` where it is another one's."""
        folder = self.folder or root() / fingerprint
        known = owner(folder)
        if known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is no KV cache (it has no {MANIFEST}): choose another --kv-cache folder"
            )
        if known is not None and known[1] != fingerprint:
            raise UsageError(
                f"the KV in {folder} was computed by {known[0]} ({known[1]}); this is {model} "
                f"({fingerprint}): choose another --kv-cache folder, or --kv-cache none"
            )

        def mark() -> None:
            if not (folder / MANIFEST).exists():
                names = {"format": FORM, "model": model, "fingerprint": fingerprint}
                text = json.dumps(names, indent=1) + "\n"
                replace_file(folder / MANIFEST, lambda new: new.write_text(text, encoding="utf-8"))

        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return Disk(folder, lambda: self.nbytes, device, dtype, mark)


def owner(folder: Path) -> tuple[str, str] | None:
    """The model whose KV a folder holds, and its fingerprint; None where it is no KV cache."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if value["format"].startswith("kvcomm-kv-"):
            return str(value["model"]), str(value["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


@dataclass(frozen=True)
class Cached:
    """What one model keeps on disk: files, bytes by file, and when each was used last."""

    path: Path
    model: str
    files: tuple[tuple[Path, int, float], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(nbytes for _, nbytes, _ in self.files)


def caches(folder: Path | None) -> list[Cached]:
    """The KV caches in `folder`, or in the user's cache, by path."""
    places = [folder] if folder else sorted(p for p in root().glob("*") if p.is_dir())
    return [
        Cached(place, known[0], tuple(files_in(place)))
        for place in places
        if (known := owner(place)) is not None
    ]


def unwanted(
    found: list[Cached], *, older_than: float | None, keep: int | None, everything: bool
) -> dict[Path, int]:
    """Files not used for `older_than` seconds, and the oldest over `keep` bytes; their bytes."""
    every = sorted((file for one in found for file in one.files), key=lambda file: file[2])
    left, gone, now = sum(nbytes for _, nbytes, _ in every), dict[Path, int](), time.time()
    for path, nbytes, used in every:
        old = older_than is not None and now - used > older_than
        if everything or old or (keep is not None and left > keep):
            gone[path] = nbytes
            left -= nbytes
    return gone
