"""What was learned, kept between runs: for each template a file of offsets and one of audits.

A state folder belongs to one model and one version of this library. Its `manifest.json` names
both; a folder of another one is refused, never mixed. Templates are found by their fingerprints,
behind a hash of the namespace that learned them. Only what has changed is written. Every file is
replaced in one step, so processes may share a folder: what is written last stays, template by
template. When a folder is over its limit, templates that were written longest ago go.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kvcomm.errors import StateError
from kvcomm.kv.files import content_key, load_tensors, replace_file, save_tensors
from kvcomm.prompt import Template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.offsets.base import OffsetModel, Offsets
from kvcomm.reuse.state_files import AUDITS, DAMAGED, FORMAT, LIBRARY, MANIFEST, OFFSETS

# The most bytes of one model's state.
LIMIT = 4 << 30

# What was learned of one template, and the version of it: see `Offsets.versions`.
Copied = tuple[int, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Loaded:
    """What was read, and what was not, and why: files that are damaged, templates without room.

    `read` names the templates that were read now, not those that were known before.
    """

    templates: int
    samples: int
    refused: tuple[str, ...] = ()
    read: tuple[str, ...] = field(default=(), compare=False)


def learned_by(template: Template, namespace: str) -> str:
    """The name under which all that is learned of a template is kept.

    What one tenant's texts taught never shows in another's.
    """
    return _tenant(namespace) + template.fingerprint


def belongs(name: str, namespace: str) -> bool:
    """Whether `learned_by` gave a template this name in the namespace."""
    return name.startswith(_tenant(namespace)) if namespace else "-" not in name


def _tenant(namespace: str) -> str:
    return content_key(namespace)[:16] + "-" if namespace else ""


def check_folder(folder: Path, model: str, fingerprint: str) -> None:
    """Raise `StateError` when `folder` holds what another model learned, or anything else."""
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.glob("*" + OFFSETS))):
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


def load_state(
    folder: Path,
    offsets: Offsets,
    device: torch.device,
    namespace: str = "",
    *,
    again: bool = False,
) -> Loaded:
    """Read the templates of a namespace into `offsets`, the latest first, while there is room.

    Templates of which something is known already are left as they are, unless they are to be read
    `again`. A damaged file is set aside (its name ends in `.damaged` then) and named, and the
    others are read.
    """
    templates, samples, refused, read, left = 0, 0, [], [], 0
    known = offsets.samples()
    for path in sorted(folder.glob("*" + OFFSETS), key=_age):
        if not belongs(path.stem, namespace):
            continue
        if known.get(path.stem) and not again:
            templates, samples = templates + 1, samples + known[path.stem]
            continue
        if offsets.nbytes >= offsets.budget():
            left += 1
            continue
        try:
            models = _read(path, offsets, device)
        except Exception as error:
            refused.append(_set_aside(path, error))
            continue
        for (family, label), model in models.items():
            offsets.models[family, path.stem, label] = model
            samples += model.samples
        templates += 1
        read.append(path.stem)
    if left:
        refused.append(f"{left} templates: no room in memory")
    return Loaded(templates, samples, tuple(refused), tuple(read))


def _set_aside(path: Path, error: Exception) -> str:
    """Rename a damaged file; returns what is wrong with it."""
    with suppress(OSError):
        os.replace(path, path.with_name(path.name + DAMAGED))
    what = f"it lacks {error}" if isinstance(error, KeyError) else error
    return f"{path.name}: {what}"


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


def copy_state(offsets: Offsets, namespace: str, saved: Mapping[str, int]) -> dict[str, Copied]:
    """Copies of what a namespace has learned and `saved`, versions by template, does not hold."""
    found: dict[str, Copied] = {}
    for (family, template, label), learned in offsets.models.items():
        version = offsets.versions.get(template, 0)
        if version == saved.get(template) or not belongs(template, namespace):
            continue
        if learned.samples:
            _, tensors = found.setdefault(template, (version, {}))
            for name, tensor in learned.state().items():
                tensors[f"{family}/{label}/{name}"] = tensor.detach().to("cpu", copy=True)
    return found


def save_state(
    folder: Path,
    model: str,
    fingerprint: str,
    learned: Mapping[str, Copied],
    limit: int = LIMIT,
) -> int:
    """Write templates, each file replaced in one step, and keep the folder below `limit` bytes.

    Returns the bytes that were written. Raises `StateError` for another model's folder, and for
    one that cannot be written.
    """
    check_folder(folder, model, fingerprint)
    if not learned:
        return 0
    written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {"model": model, "fingerprint": fingerprint}
        if not (folder / MANIFEST).exists():
            _write(folder / MANIFEST, {"format": FORMAT, "library": LIBRARY, **names})
        for template, (_, tensors) in learned.items():
            path = folder / (template + OFFSETS)
            save_tensors(path, tensors, FORMAT)
            written += path.stat().st_size
    except OSError as error:
        raise StateError(
            f"cannot write the state to {folder} ({error}): choose another --state folder, or "
            "--state none"
        ) from error
    _keep_below(folder, limit, learned)
    return written


def _keep_below(folder: Path, limit: int, fresh: Iterable[str]) -> None:
    """Remove the templates that were written longest ago, but none that is `fresh`."""
    sizes: dict[Path, int] = {}
    for path in sorted(folder.glob("*" + OFFSETS), key=_age):
        with suppress(OSError):  # another process may have removed it
            sizes[path] = path.stat().st_size
    keep, total = set(fresh), sum(sizes.values())
    for path, size in reversed(sizes.items()):
        if total <= limit:
            return
        if path.stem not in keep:
            path.unlink(missing_ok=True)
            path.with_name(path.stem + AUDITS).unlink(missing_ok=True)
            total -= size


def load_audits(folder: Path, auto: Auto, namespace: str = "") -> str:
    """Read a namespace's audits into `auto`; returns why some were set aside, or nothing."""
    refused = []
    for path in sorted(folder.glob("*" + AUDITS)):
        if not belongs(path.name.removesuffix(AUDITS), namespace):
            continue
        try:
            if not path.is_file():
                raise ValueError("it is no file")
            value = json.loads(path.read_text(encoding="utf-8-sig"))
            if value["format"] != FORMAT:
                raise ValueError(f"not in the format {FORMAT}")
            auto.load_json(value["audits"])
        except Exception as error:
            refused.append(_set_aside(path, error))
    return "; ".join(refused)


def save_audits(folder: Path, auto: Auto) -> int:
    """Write the audits of `auto` that are new, template by template; returns the bytes.

    Raises `StateError`.
    """
    fresh, auto.unsaved = auto.unsaved, set()
    by_template: dict[str, dict[str, object]] = defaultdict(dict)
    stems = set(map(_stem, fresh))
    for key, audits in auto.to_json().items():
        if _stem(key) in stems:
            by_template[_stem(key)][key] = audits
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return sum(
            _write(folder / (template + AUDITS), {"format": FORMAT, "audits": audits})
            for template, audits in by_template.items()
        )
    except OSError as error:
        auto.unsaved |= fresh
        raise StateError(f"cannot write the audits to {folder} ({error})") from error


def _stem(key: str) -> str:
    """The template of audits, whatever the kinds of texts that they are of."""
    return key.partition(",")[0]


def _write(path: Path, value: object) -> int:
    text = json.dumps(value, indent=1) + "\n"
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))
    return len(text)
