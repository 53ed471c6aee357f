"""What was learned, kept between runs: one safetensors file a template, beside a manifest.

A state folder belongs to one model. Its `manifest.json` names the model's fingerprint; a folder of
another model is refused, never mixed. Templates are found by their own fingerprints.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kvcomm.errors import StateError
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets.base import Offsets

FORMAT = "kvcomm-state-2"
MANIFEST = "manifest.json"
AUDITS = "audits.json"


@dataclass(frozen=True)
class Loaded:
    """What was read, and which files were left alone (damaged) and why."""

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
        manifest = json.loads(path.read_text(encoding="utf-8"))
        learned_by, known = str(manifest["model"]), str(manifest["fingerprint"])
        layout = str(manifest["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path} is not a state manifest ({error}): choose another --state folder"
        ) from None
    if layout != FORMAT or known != fingerprint:
        raise StateError(
            f"the state in {folder} was learned by {learned_by} ({known}, {layout}); this is "
            f"{model} ({fingerprint}, {FORMAT}): choose another --state folder, or --state none"
        )


def load_state(folder: Path, offsets: Offsets, device: torch.device) -> Loaded:
    """Read every template of `folder` into `offsets`; a damaged file is named and left alone."""
    templates, samples, refused = 0, 0, []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            grouped: dict[tuple[str, str], dict[str, torch.Tensor]] = defaultdict(dict)
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise ValueError(f"not in the format {FORMAT}")
                for name in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                    family, label, rest = name.split("/", 2)
                    grouped[family, label][rest] = file.get_tensor(name)
            models = {key: offsets.families[key[0]]() for key in grouped}
            for key, model in models.items():
                model.load_state(grouped[key])
        except Exception as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            refused.append(f"{path.name}: {what}")
            continue
        for (family, label), model in models.items():
            offsets.models[family, path.stem, label] = model
            samples += model.samples
        templates += 1
    return Loaded(templates, samples, tuple(refused))


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
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"cannot write the state to {folder} ({error}): choose another --state folder, or "
            "--state none"
        ) from error


def load_audits(folder: Path, auto: Auto) -> str:
    """Read the audits of `auto`; returns why they were left alone, or nothing."""
    path = folder / AUDITS
    if not path.exists():
        return ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"not in the format {FORMAT}")
        auto.load_json(value["audits"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
    folder: Path, model: str, fingerprint: str, by_template: dict[str, dict[str, torch.Tensor]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"format": FORMAT, "model": model, "fingerprint": fingerprint}
    replace_file(
        folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1) + "\n")
    )
    for template, tensors in by_template.items():
        # safetensors refuses tensors that share memory; pools share base KV between agents.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        save = partial(save_file, copies, metadata={"format": FORMAT})
        replace_file(folder / f"{template}.safetensors", save)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a new file beside `path`, then put it there at once, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
