"""What happens when a call of an agent or a tool goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kvcomm.errors import UsageError

OnError = Literal["fail", "skip", "fallback"]


@dataclass(frozen=True, kw_only=True)
class Care:
    """How long a call may take, how often it is tried again, and what is done in the end.

    `timeout_s` counts from a call's last input. A call that failed is tried again `retries` times,
    `backoff_s` later, then after twice as long, and so on. When it has failed for good, `on_error`
    says what happens: "fail" ends the run, "skip" tells the readers that there is no answer, and
    "fallback" hands them the text `fallback` instead. The answer of a graph cannot be skipped.
    """

    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 0.2
    on_error: OnError = "fail"
    fallback: str = ""

    def check_care(self, who: str) -> None:
        """Raise `UsageError` for values out of range; `who` begins the message."""
        if self.retries < 0 or not 0 <= self.backoff_s < float("inf"):
            raise UsageError(f"{who}: retries and backoff_s must not be negative")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(f"{who}: timeout_s must be positive, or None for no limit")
        if self.on_error not in (known := get_args(OnError)):
            raise UsageError(f"{who}: on_error {self.on_error!r} is none of {', '.join(known)}")
        if (self.on_error == "fallback") != bool(self.fallback.strip()):
            raise UsageError(f'{who}: on_error="fallback" and a text `fallback` go together')

    def instead(self, node: str) -> str:
        """What a node's readers are told when it has failed for good."""
        return self.fallback if self.on_error == "fallback" else f"({node} gave no answer.)"
