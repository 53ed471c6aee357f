"""How an agent's tokens are drawn."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from kvcomm.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Decoding settings of one agent.

    `temperature` 0 is greedy. `top_p` keeps the smallest set of tokens whose probabilities sum to
    at least `top_p`. `max_tokens` bounds the answer, the stop token not counted. `stop` adds token
    ids to the model's own stop tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(
                f"temperature {self.temperature!r} is negative or not finite: use 0 for greedy"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p!r} is outside (0, 1]")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens {self.max_tokens!r} must be at least 1")


def call_seed(seed: int, sample: str, node: str, attempt: int) -> int:
    """The seed of one call's own generator: equal for equal (seed, sample, node, attempt)."""
    text = f"{seed}\0{sample}\0{node}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
