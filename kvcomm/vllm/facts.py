"""What workers tell the scheduler side, and what all ranks know together.

Each rank has some of the KV heads, learns from them alone, and does so when it gets to it. A model
is known when all ranks have it; errors are shares of sums, so they are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from kvcomm.reuse.plan import linear_says
from kvcomm.vllm.orders import Model


@dataclass(frozen=True)
class Told:
    """What one rank's offset model says: whether it can predict, why, its samples and its error.

    The error is `left / total`, where those are known. It predicts texts of up to `reach` tokens
    (None: of any length), and literals of the lengths `literals`.
    """

    shareable: bool
    reason: str
    samples: int
    error: float
    left: float = 0.0
    total: float = 0.0
    reach: int | None = None
    literals: tuple[int, ...] = ()

    @property
    def brief(self) -> tuple[bool, str, int, float]:
        """What a client is told."""
        return self.shareable, self.reason, self.samples, self.error


def together(told: Iterable[Told]) -> Told:
    """What several ranks say of one model."""
    all_ = list(told)
    if len(all_) == 1:
        return all_[0]
    samples = min(one.samples for one in all_)
    reaches = [one.reach for one in all_ if one.reach is not None]
    total, left = (sum(getattr(one, name) for one in all_) for name in ("total", "left"))
    common = set.intersection(*(set(one.literals) for one in all_))
    doubtful = next((one for one in all_ if not one.shareable), all_[0])
    found = replace(
        doubtful,
        samples=samples,
        error=max(one.error for one in all_),
        left=left,
        total=total,
        reach=min(reaches, default=None),
        literals=tuple(sorted(common)),
    )
    if total <= 0:
        return found
    says = linear_says(samples, min(left / total, 1.0))
    return replace(found, shareable=says.shareable, reason=says.reason, error=says.error)


@dataclass
class Facts:
    """What ranks have to say after a step, by rank. A model at None is forgotten.

    `lessons` are the numbers of those that are over, `answers` those to questions, by number.
    `failed` says why a rank does nothing any more.
    """

    models: dict[int, dict[Model, Told | None]] = field(default_factory=dict)
    answers: dict[int, dict[int, Told | None]] = field(default_factory=dict)
    lessons: dict[int, tuple[int, ...]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.models or self.answers or self.lessons or self.failed)

    def merged(self, other: Facts) -> Facts:
        """What two sets of ranks say."""
        return Facts(
            {**self.models, **other.models},
            {**self.answers, **other.answers},
            {**self.lessons, **other.lessons},
            {**self.failed, **other.failed},
        )


class Known:
    """The models of `ranks` ranks, as they were last heard of."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._models: dict[Model, dict[int, Told]] = {}
        self._changed: dict[Model, float] = {}  # when, by the caller's clock

    def __getitem__(self, model: Model) -> Told | None:
        """What all ranks say of a model; None when one of them does not have it."""
        told = self._models.get(model, {})
        return together(told.values()) if len(told) == self._ranks else None

    def __len__(self) -> int:
        return len(self._models)

    def heard(self, models: Mapping[int, Mapping[Model, Told | None]], now: float) -> None:
        """Take in what ranks say."""
        for rank, news in models.items():
            for model, told in news.items():
                if told is None:
                    self._models.get(model, {}).pop(rank, None)
                else:
                    self._models.setdefault(model, {})[rank] = told
                self._changed[model] = now

    def since(self, when: float | None) -> dict[str, tuple[bool, str, int, float]]:
        """Those that changed at `when` or later (None: all), by family, template and label."""
        found = {}
        for model, changed in self._changed.items():
            if (when is None or changed >= when) and (told := self[model]) is not None:
                found[" ".join(model)] = told.brief
        return found
