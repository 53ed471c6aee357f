"""Steps and plans: how each segment of a prompt is obtained, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Way = Literal["compute", "prefix", "realign"]


@dataclass(frozen=True)
class Step:
    """One segment's way into the row.

    `positions` are the segment's positions that are computed; None means all of them that no
    exact prefix holds. A "prefix" step is a "compute" step that found everything in the prefix
    cache: it is what happened, never what a policy asks for. A realigned segment may have the
    `deviating` positions computed too that differ most by predicted offset. `corrected` adds the
    predicted offset; without it base KV is only rotated to its place.
    """

    way: Way
    reason: str
    positions: tuple[int, ...] | None = None
    deviating: int = 0
    corrected: bool = True


@dataclass(frozen=True)
class Verdict:
    """What an offset model says of a placeholder: can its offset be predicted?

    `error` is the running share of squared error that predictions leave, 1 when unknown.
    """

    shareable: bool
    reason: str
    samples: int = 0
    error: float = 1.0

    @property
    def usable(self) -> bool:
        """Whether there is something to predict from, its gate aside."""
        return self.shareable or self.samples > 1


@dataclass(frozen=True)
class Fact:
    """What a policy may know of a segment. Numbers only, no tensors.

    `covered` are the segment's positions with base KV in the store (empty: none). `verdict` is
    the offset model's, for placeholders with base KV. `prefix` counts the tokens that the exact
    prefix cache holds, from the prompt's start without a gap. `last` marks the prompt's final
    segment, whose last token is always computed. `done` leading tokens are in the row already, they
    were computed ahead. `absent` says why there is no base KV, where there is none. `deviations`
    are squared distances of true KV from base KV at the covered positions, where they were
    measured (empty: not).
    """

    kind: Literal["literal", "placeholder"]
    name: str
    tokens: int
    covered: tuple[int, ...] = ()
    verdict: Verdict | None = None
    prefix: int = 0
    last: bool = False
    done: int = 0
    absent: str = "no base KV"
    deviations: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The steps of one prompt. `learn` are the segments whose offsets are observed afterwards.

    A plan for the `whole` prompt was made when only a part of it was known, and holds for none of
    it unless the row is empty: what is there makes way.
    """

    steps: tuple[Step, ...]
    gate: str
    dense: bool
    learn: tuple[int, ...] = ()
    whole: bool = False
