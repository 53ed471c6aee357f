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
    at least `top_p`. `max_tokens` bounds the answer, the stop token not counted. The answer ends
    before the first of the texts `stop`, and at a token of `stop_token_ids` or of the model's own.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(
                f"temperature {self.temperature!r} is negative or not finite: use 0 for greedy"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p!r} is outside (0, 1]")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens {self.max_tokens!r} must be at least 1")
        stop: object = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(t, str) and t for t in stop):
            raise UsageError(
                f"stop {stop!r} must be a tuple of texts that are not empty, such as ('\\n',); "
                "token ids go to stop_token_ids"
            )


def call_seed(seed: int, sample: str, node: str, attempt: int) -> int:
    """The seed of one call's own generator: equal for equal (seed, sample, node, attempt)."""
    text = f"{seed}\0{sample}\0{node}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
