"""Tensors on disk: safetensors files that are whole or not there, and that know their checksum."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from kvcomm.kv.precision import place, where_wide

FORMAT, CHECKSUM = "format", "checksum"
# No header of a file of ours is longer.
HEADER = 1 << 20


def content_key(*parts: object) -> str:
    """The address of what depends on nothing but `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def checksum(tensors: Iterable[torch.Tensor]) -> str:
    """A number for the bits of `tensors`, in their order: it tells damage, not malice."""
    # An XOR over all words as float64, at the speed of reading them.
    sums = (torch.hash_tensor(where_wide(t.detach())).item() if t.numel() else 0 for t in tensors)
    return "-".join(f"{value:016x}" for value in sums)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], form: str, metadata: Mapping[str, str] = {}
) -> None:
    """Write `tensors` in the format `form`, in one step. Raises `OSError`."""
    # safetensors refuses tensors that share memory, and writes contiguous ones only.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in sorted(tensors.items())}
    header = {**metadata, FORMAT: form}
    header[CHECKSUM] = _sum(copies, header)
    try:
        replace_file(path, partial(save_file, copies, metadata=header))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_tensors(
    path: Path, form: str, device: str = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote.

    They are on `device`, as far as it has their dtype. Raises `ValueError` for a file of another
    format, and for one that is damaged.
    """
    try:
        # Opened once: a library that opens a path again may find the file that replaced it.
        data = path.read_bytes()
        tensors = dict(sorted(load(data).items()))
        header = _metadata(data)
    except Exception as error:
        raise ValueError(f"cannot be read: {error}") from error
    if header.get(FORMAT) != form:
        raise ValueError(f"not in the format {form}")
    if header.pop(CHECKSUM, "") != _sum(tensors, header):
        raise ValueError("damaged: its checksum is another")
    where = torch.device(device)
    return {name: place(tensor, where) for name, tensor in tensors.items()}, header


def header_of(path: Path, form: str) -> dict[str, str]:
    """The metadata of a file, without its tensors.

    Raises `OSError`, and `ValueError` for a file of another format.
    """
    with path.open("rb") as file:
        size = file.read(8)
        try:
            header = _metadata(size + file.read(min(int.from_bytes(size, "little"), HEADER)))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"has no metadata: {error}") from None
    if header.pop(FORMAT, None) != form:
        raise ValueError(f"not in the format {form}")
    header.pop(CHECKSUM, None)
    return header


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: its header is JSON, behind its length."""
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size]).get("__metadata__") or {})


def _sum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> str:
    """The checksum of a whole file: its tensors, and what is said of them."""
    said = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    words = zlib.crc32(repr((said, sorted(header.items()))).encode())
    return f"{words:08x}-{checksum(tensors.values())}"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a new file beside `path`, then put it there at once, or not at all.

    Raises `OSError`.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
