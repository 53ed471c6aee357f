"""What one replica can do: seconds of a forward, memory, and what its KV takes."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kvcomm.errors import UsageError


def _rising(points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """Points in the order of their counts, made monotone: noise must not make more work faster."""
    if not points:
        raise ValueError("needs a point at least, such as [[1, 0.02]]")
    if min(count for count, _ in points) < 1 or min(seconds for _, seconds in points) <= 0:
        raise ValueError("points are [count, seconds], both above 0")
    counts, seconds = zip(*sorted(dict(points).items()), strict=True)
    return tuple(zip(counts, itertools.accumulate(seconds, max), strict=True))


# Seconds by a count (of tokens, of rows): straight lines between measured points.
Curve = Annotated[tuple[tuple[int, float], ...], AfterValidator(_rising)]


def along(curve: Sequence[tuple[int, float]], count: float) -> float:
    """The value of a curve at `count`; beyond its last point it goes on as between the last two."""
    if count <= curve[0][0] or len(curve) == 1:
        return curve[0][1]
    ends = next((i for i, (at, _) in enumerate(curve) if at >= count), len(curve) - 1)
    (left, low), (right, high) = curve[ends - 1], curve[ends]
    return low + (high - low) * (count - left) / (right - left)


class Hardware(BaseModel):
    """A replica: `devices` that hold one copy of a model between them. Bytes and seconds.

    `memory` is that of one device, `weights` the model's, `kv_bytes` the KV of one token.
    `prefill` is seconds of a forward by its tokens, `decode` seconds of a step by its rows, both
    on an empty context. A prefilled token takes `attend_s` more, a decoding row `read_s`, for every
    1,000 tokens in front of it. `call_s` passes between asking for KV and its forward. A realigned
    token takes `realign_s` (None: what the trace says), offset models `offset_bytes` a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: Literal["measured", "calculated", "stated"] = "stated"
    model: str = ""
    devices: int = Field(default=1, ge=1)
    memory: float = Field(gt=0)
    weights: float = Field(default=0, ge=0)
    kv_bytes: int = Field(gt=0)
    prefill: Curve
    decode: Curve
    attend_s: float = Field(default=0, ge=0)
    read_s: float = Field(default=0, ge=0)
    call_s: float = Field(default=0.001, ge=0)
    realign_s: float | None = Field(default=None, ge=0)
    offset_bytes: int = Field(default=0, ge=0)

    @property
    def kv_memory(self) -> float:
        """Bytes for all KV by the engine's default: half of what the weights leave."""
        return max(self.memory * self.devices - self.weights, 0) / 2

    def forward_s(
        self, contexts: Sequence[float] = (), chunks: Sequence[tuple[float, int]] = ()
    ) -> float:
        """Seconds of one packed forward.

        `contexts` are the tokens in front of every decoding row, `chunks` the mean context and the
        tokens of every row being extended. A chunk beside decoding rows costs what it adds.
        """
        rows, tokens = len(contexts), sum(count for _, count in chunks)
        spent = along(self.decode, rows) if rows else 0.0
        if tokens:
            beside = along(self.prefill, rows) if rows else 0.0
            spent += along(self.prefill, rows + tokens) - beside
        spent += self.read_s * sum(contexts) / 1000
        return spent + self.attend_s * sum(at * count for at, count in chunks) / 1000

    def to_toml(self) -> str:
        """The file that `read_hardware` reads, with a comment on every number."""
        lines = ["# What a replica can do. Bytes, and seconds; `kvcomm plan` reads it."]
        for name, value in self.model_dump(exclude_none=True).items():
            lines.append(f"{name} = {_toml(value)}{NOTES.get(name, '')}")
        return "\n".join(lines) + "\n"


NOTES = {
    "devices": "  # that hold one copy of the model; their memory adds up",
    "memory": "  # of one device, for this program",
    "weights": "  # of the model",
    "kv_bytes": "  # of one token",
    "prefill": "  # [tokens, seconds of their forward]",
    "decode": "  # [rows, seconds of their step]",
    "attend_s": "  # more for a prefilled token, for each 1,000 tokens before it",
    "read_s": "  # more for a decoding row, for each 1,000 tokens before it",
    "call_s": "  # between asking for KV and its forward",
    "realign_s": "  # for a realigned token",
    "offset_bytes": "  # of an offset model, for each text of a prompt",
}


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else f"{value:.0f}"


def read_hardware(path: Path) -> dict[str, Any]:
    """The fields of a TOML or JSON file. Raises `UsageError` for one that is neither."""
    import json

    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no hardware file: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no hardware file: write one object")
    return found


def checked(fields: dict[str, Any], where: str) -> Hardware:
    """The description that `fields` make. Raises `UsageError` that names the first wrong one."""
    try:
        return Hardware.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{where}: `{name}`: {first['msg']} (`kvcomm bench hardware` writes such a file; "
            "docs/scaling.md names its fields)"
        ) from None
