"""A score: what an answer is worth, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """`value` (0 to 1) is what is averaged; `extracted` is the answer as it was read.

    `metrics` holds other measures of the same answer. `error` says that scoring itself went wrong
    (a time limit): such an answer counts as wrong.
    """

    value: float
    correct: bool
    extracted: str
    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def right_or_wrong(correct: bool, extracted: str, reason: str, *, error: str = "") -> Score:
    """A score of one or nothing."""
    return Score(float(correct), correct, extracted, reason, error=error)
