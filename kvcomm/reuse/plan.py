"""What a policy sees of a prompt, and what it plans: numbers only, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How a segment's tokens get into a sequence. "prefix" is what happened, never what is planned: a
# segment to compute, all of which was in the prefix cache.
Source = Literal["compute", "prefix", "realign"]
# Where base KV comes from: a message's own sequence, an input computed alone, the prompt of one
# earlier reader, or the mean of several.
BaseKind = Literal["message", "alone", "borrowed", "mean"]


@dataclass(frozen=True)
class SegmentPlan:
    """How one segment gets into the sequence, and why.

    `positions` of a realigned segment are computed all the same (None: nothing is realigned, all of
    it is computed), and so are the `deviating` ones whose predicted offset is largest. `corrected`
    adds the predicted offset, times `scale`; without it base KV is only rotated to its place. Of
    all `pooled` segments together some more tokens are chosen by attention: see `Plan.chosen`.
    """

    source: Source
    reason: str
    positions: tuple[int, ...] | None = None
    deviating: int = 0
    corrected: bool = True
    scale: float = 1.0
    pooled: bool = False


@dataclass(frozen=True)
class Predictability:
    """Whether an offset model can predict the offset of a placeholder, and why.

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


# Fewer samples say nothing of a linear model.
MIN_SAMPLES = 3


def linear_says(samples: int, error: float) -> Predictability:
    """What linear offsets with so many samples say.

    They are shareable once a few were seen and the prediction beats rotating alone.
    """
    enough = samples >= MIN_SAMPLES
    shareable = enough and error < 1
    why = "too little learned" if not enough else "offsets not predictable"
    said = f"{samples} samples, error left {error:.2f}"
    return Predictability(
        shareable, f"{'linear offsets' if shareable else why}: {said}", samples, error
    )


@dataclass(frozen=True)
class SegmentFacts:
    """What a policy may know of a segment.

    `covered` are the segment's positions with base KV in the segment cache (empty: none), `absent`
    says why there are none. `offset` is what the offset model says, for placeholders with base KV.
    `prefix` counts the tokens that the prefix cache holds, from the prompt's start without a gap.
    `last` marks the prompt's final segment, whose last token is always computed. The first `done`
    tokens are in the sequence already: they were computed ahead. `deviations`, one for every
    covered position, say how far base KV is from computed KV, where that was measured. Base KV is
    of the kind `base`; `spreads`, one for every covered position of a mean, say how much the KV of
    its contexts differs.
    """

    kind: Literal["literal", "placeholder"]
    name: str
    tokens: int
    covered: tuple[int, ...] = ()
    offset: Predictability | None = None
    prefix: int = 0
    last: bool = False
    done: int = 0
    absent: str = "no base KV"
    deviations: tuple[float, ...] = ()
    base: BaseKind | None = None
    spreads: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The plans of some segments. `learn`: indices of those whose offsets are learned afterwards.

    `decision` says what was decided for all of them. A plan for the `whole` prompt that was made
    when only a part of it was known holds for none of it, unless the sequence is still empty. So
    many further tokens of its pooled segments are `chosen`: what the prompt behind them attends to.
    """

    segments: tuple[SegmentPlan, ...]
    decision: str
    dense: bool
    learn: tuple[int, ...] = ()
    whole: bool = False
    chosen: int = 0
