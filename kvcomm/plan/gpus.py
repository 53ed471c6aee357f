"""Well-known GPUs by their public peak figures: calculated, never measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm.errors import UsageError
from kvcomm.plan.hardware import Hardware, checked, read_hardware

# The share of their peaks that good kernels reach, arithmetic and memory alike.
REACHED = 0.5
# Calculated models are in bfloat16.
NUMBER_BYTES = 2
# Predicting an offset and filling a slot reads and writes its KV about so many times.
REALIGNED = 8
POINTS = (1, 2, 4, 8, 16, 64, 256, 1024, 2048, 4096)


@dataclass(frozen=True)
class Peak:
    """A device: dense bfloat16 operations a second, bytes a second, bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "h200": Peak("NVIDIA H200 SXM", 989e12, 4.8e12, 141e9),
    "h100": Peak("NVIDIA H100 SXM", 989e12, 3.35e12, 80e9),
    "a100": Peak("NVIDIA A100 SXM 80 GB", 312e12, 2.04e12, 80e9),
    "l40s": Peak("NVIDIA L40S", 362e12, 0.864e12, 48e9),
    "l4": Peak("NVIDIA L4", 121e12, 0.3e12, 24e9),
    "rtx4090": Peak("NVIDIA RTX 4090", 165e12, 1.01e12, 24e9),
}


def calculated(peak: Peak, model: str, parameters: float, kv_bytes: int) -> Hardware:
    """A model of `parameters` on a device: a forward takes what weights or arithmetic take.

    Attention to the context counts as reading its KV, once a row; for prefilled tokens as 4
    operations on every number of the KV.
    """
    bandwidth, flops = peak.bandwidth * REACHED, peak.flops * REACHED
    weights = parameters * NUMBER_BYTES

    def seconds(tokens: int) -> float:
        return max(weights / bandwidth, 2 * parameters * tokens / flops)

    curve = tuple((tokens, seconds(tokens)) for tokens in POINTS)
    return Hardware(
        name=peak.name,
        source="calculated",
        model=model,
        memory=peak.memory,
        weights=weights,
        kv_bytes=kv_bytes,
        prefill=curve,
        decode=curve,
        attend_s=1000 * 4 * kv_bytes / NUMBER_BYTES / flops,
        read_s=1000 * kv_bytes / bandwidth,
        realign_s=REALIGNED * kv_bytes / bandwidth,
    )


def parameters_of(model: str) -> float | None:
    """The size in a model's name (`llama-3.1-8b`, `SmolLM2-135M`); None where there is none."""
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model.lower())
    return float(found[-1][0]) * {"b": 1e9, "m": 1e6}[found[-1][1]] if found else None


def hardware_named(
    name: str, model: str, *, kv_bytes: int | None = None, parameters: str | None = None
) -> Hardware:
    """A file's description, or a GPU's for `model`; `kv_bytes` replaces the file's.

    Raises `UsageError` for what is neither, and where a GPU's needs a number that is missing.
    """
    if name in GPUS:
        size = parameters_of(parameters if parameters is not None else model)
        if not size:
            raise UsageError(
                f"the name of the model {model!r} does not tell its size: add --parameters 8B"
                if parameters is None
                else f"--parameters {parameters!r}: write 8B, 1.5B or 135M"
            )
        if kv_bytes is None:
            raise UsageError(
                f"--hardware {name} needs --kv-bytes N, the KV of one token: "
                f"`kvcomm models check {model}` prints it"
            )
        return calculated(GPUS[name], model, size, kv_bytes)
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"no hardware {name!r}: give a .toml or .json file (`kvcomm bench hardware --out "
            f"FILE.toml` writes one), or one of {', '.join(GPUS)}"
        )
    fields: dict[str, Any] = read_hardware(path)
    if kv_bytes is not None:
        fields["kv_bytes"] = kv_bytes
    return checked(fields, str(path))
