"""What was learned, kept between runs: one safetensors file a template, beside a manifest.

A state folder belongs to one model and one version of this library. Its `manifest.json` names
both; a folder of another one is refused, never mixed. Templates are found by their fingerprints.
Every file is replaced in one step and carries a checksum, so processes may share a folder: what is
written last stays, template by template.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from kvcomm.errors import StateError
from kvcomm.kv.files import load_tensors, replace_file, save_tensors
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets.base import OffsetModel, Offsets
from kvcomm.version import VERSION

FORMAT = "kvcomm-state-3"
LIBRARY = "kvcomm " + ".".join(VERSION.split(".")[:2])
MANIFEST = "manifest.json"
AUDITS = "audits.json"
DAMAGED = ".damaged"


@dataclass(frozen=True)
class Loaded:
    """What was read, and what was not, and why: files that are damaged, templates without room."""

    templates: int
    samples: int
    refused: tuple[str, ...] = ()


def check_folder(folder: Path, model: str, fingerprint: str) -> None:
    """Raise `StateError` when `folder` holds what another model learned, or anything else."""
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.glob("*.safetensors"))):
            raise StateError(
                f"{folder} is not a state folder (it has no {MANIFEST}): choose another --state "
                "folder"
            )
        return
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        manifest = json.loads(path.read_text(encoding="utf-8-sig"))
        learned_by, known = str(manifest["model"]), str(manifest["fingerprint"])
        layout, library = str(manifest["format"]), str(manifest.get("library"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(
            f"{path} is not a state manifest ({error}): choose another --state folder"
        ) from None
    if (layout, library, known) != (FORMAT, LIBRARY, fingerprint):
        raise StateError(
            f"the state in {folder} was learned by {learned_by} ({known}, {library}, {layout}); "
            f"this is {model} ({fingerprint}, {LIBRARY}, {FORMAT}): choose another --state folder, "
            "or --state none"
        )


def load_state(folder: Path, offsets: Offsets, device: torch.device) -> Loaded:
    """Read every template of `folder` into `offsets`, the latest first, while there is room.

    A damaged file is set aside (its name ends in `.damaged` then) and named, and the others are
    read.
    """
    templates, samples, refused, left = 0, 0, [], 0
    for path in sorted(folder.glob("*.safetensors"), key=_age):
        if offsets.nbytes >= offsets.budget():
            left += 1
            continue
        try:
            models = _read(path, offsets, device)
        except Exception as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            with suppress(OSError):
                os.replace(path, path.with_name(path.name + DAMAGED))
            refused.append(f"{path.name}: {what}")
            continue
        for (family, label), model in models.items():
            offsets.models[family, path.stem, label] = model
            samples += model.samples
        templates += 1
    if left:
        refused.append(f"{left} templates: no room in memory")
    return Loaded(templates, samples, tuple(refused))


def _age(path: Path) -> float:
    """Newest first; a file that another process has just removed is the oldest."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path, offsets: Offsets, device: torch.device) -> dict[tuple[str, str], OffsetModel]:
    """The models of one template. Raises anything for a file that is damaged."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("is no file")
    tensors, _ = load_tensors(path, FORMAT, str(device))
    grouped: dict[tuple[str, str], dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        family, label, rest = name.split("/", 2)
        grouped[family, label][rest] = tensor
    models = {key: offsets.new(key[0]) for key in grouped}
    for key, model in models.items():
        model.load_state(grouped[key])
        offsets.check(model)
    return models


def save_state(folder: Path, model: str, fingerprint: str, offsets: Offsets) -> None:
    """Write every template that learned something, each file replaced atomically.

    Raises `StateError` for another model's folder, and for one that cannot be written.
    """
    check_folder(folder, model, fingerprint)
    by_template: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for (family, template, label), learned in offsets.models.items():
        if learned.samples:
            for name, tensor in learned.state().items():
                by_template[template][f"{family}/{label}/{name}"] = tensor
    if not by_template:
        return
    try:
        _write(folder, model, fingerprint, by_template)
    except OSError as error:
        raise StateError(
            f"cannot write the state to {folder} ({error}): choose another --state folder, or "
            "--state none"
        ) from error


def load_audits(folder: Path, auto: Auto) -> str:
    """Read the audits of `auto`; returns why they were set aside, or nothing."""
    path = folder / AUDITS
    if not path.exists():
        return ""
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if value["format"] != FORMAT:
            raise ValueError(f"not in the format {FORMAT}")
        auto.load_json(value["audits"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        with suppress(OSError):
            os.replace(path, path.with_name(path.name + DAMAGED))
        return f"{AUDITS}: {error}"
    return ""


def save_audits(folder: Path, auto: Auto) -> None:
    """Write the audits of `auto`, if there are any. Raises `StateError`."""
    if not auto.audits:
        return
    text = json.dumps({"format": FORMAT, "audits": auto.to_json()}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / AUDITS, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StateError(f"cannot write the audits to {folder} ({error})") from error


def _write(
    folder: Path,
    model: str,
    fingerprint: str,
    by_template: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"format": FORMAT, "library": LIBRARY, "model": model, "fingerprint": fingerprint}
    replace_file(
        folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1) + "\n")
    )
    for template, tensors in by_template.items():
        save_tensors(folder / f"{template}.safetensors", tensors, FORMAT)
