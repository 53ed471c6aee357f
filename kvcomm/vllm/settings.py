"""What a connector is told at start: its options, its place among the ranks, and whose KV it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm.kv import content_key
from kvcomm.vllm.learner import State

GB = 1 << 30
# A row whose client says nothing for so long ends, in seconds.
ROW_S = 300.0
# What differs between two copies of one model's configuration.
UNTOLD = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Settings:
    """The entries of `kv_connector_extra_config`.

    `store_gb` of host memory are for KV, on all ranks together; or, where `device_share` is not 0,
    that share of each device's memory, which must have been left free
    (`--gpu-memory-utilization`). `models_gb` of host memory are for offset models, kept in the
    folder `state`. A row that nobody asks for ends after `row_s` seconds.
    """

    store_gb: float = 4.0
    device_share: float = 0.0
    models_gb: float = 4.0
    state: str = ""
    row_s: float = ROW_S

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Settings:
        """Those of a configuration. Raises `ValueError` for what is none."""
        numbers = {}
        for name in ("store_gb", "device_share", "models_gb", "row_s"):
            value = extra.get(name, getattr(cls, name))
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is {value!r}: it must be a number, 0 or more")
            numbers[name] = float(value)
        if numbers["device_share"] >= 1:
            raise ValueError("device_share must be less than 1")
        state = extra.get("state") or ""
        if not isinstance(state, str):
            raise ValueError(f"state is {state!r}: it must be a folder")
        return cls(**numbers, state=state)

    def store_bytes(self, ranks: int, device_bytes: int) -> int:
        """The budget of the store, on all ranks together."""
        if self.device_share:
            return int(self.device_share * device_bytes * ranks)
        return int(self.store_gb * GB)

    def kept(self, model: Any, ranks: int, rank: int) -> tuple[State | None, str]:
        """Where a rank's offset models are kept; and what is there that it cannot read.

        `model` is vLLM's `ModelConfig`.
        """
        if not self.state:
            return None, ""
        fingerprint = model_key(model)
        root = Path(self.state).expanduser() / fingerprint[:16]
        others = sorted(
            {path.name.rpartition("-")[2] for path in root.glob("*-of-*")} - {str(ranks)}
        )
        why = ""
        if others:
            why = f"what {' and '.join(others)} ranks learned is not read by {ranks}"
        folder = root / f"{rank}-of-{ranks}"
        return State(folder, str(model.model), f"{fingerprint}-{rank}-of-{ranks}"), why


def model_key(model: Any) -> str:
    """What names a model as it runs on a server, by vLLM's `ModelConfig`."""
    text = {k: v for k, v in model.hf_text_config.to_dict().items() if k not in UNTOLD}
    said = json.dumps(text, sort_keys=True, default=str)
    return content_key(
        str(model.model), str(model.revision), str(model.dtype), str(model.quantization), said
    )
