"""The controller of `auto`: which calls may be realigned, how far, and which are audited.

For every template and level (a recipe) it keeps the divergences that audits measured. A level may
be used when its bound meets the target:

    fewer than 5 audits:  bound = max(prior(level) · error, mean)
    from 5 audits on:     bound = mean + 1.64 · sd / √n           (of the last 40)

where the prior was measured on this model with base KV only rotated, and error is the share of
squared offset error that the offset models leave. Of the levels that meet the target the cheapest
is taken. When none does, the call is exact, and a level is probed on it: realigned beside it, after
the answer, and compared. So the first calls are exact, and what is delivered approximately was
bounded or measured before. Pure: no tensors, no clock, no randomness but seeded.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Verdict
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import LINEAR, Budget, Realign, Recipe

TARGET = 0.02
AUDIT_RATE = 0.1
ENOUGH = 5
WINDOW = 40
Z95 = 1.64

# Cheapest first.
LEVELS = (
    replace(LINEAR, name="light", first=4),
    LINEAR,
    replace(LINEAR, name="heavy", first=16, deviating=0.1),
)


@dataclass(frozen=True)
class Choice:
    """How one call is done: its policy, and the level that is audited with it.

    `used`: the level was delivered and a dense shadow audits it; otherwise the call is exact and
    the level, if any, is probed beside it. `bound` is the level's bound when it was chosen.
    """

    policy: Exact | Realign
    level: Recipe | None = None
    used: bool = False
    audited: bool = False
    bound: float | None = None


@dataclass
class Auto:
    """Chooses per call, and learns from audits.

    `target` is the mean divergence in nats to stay below, `rate` the share of calls audited once a
    level is known, `priors` the divergence of each level without offsets. A decoding step carries
    `spare` tokens beside its rows at no cost. Raises `UsageError` for values out of range.
    """

    target: float = TARGET
    rate: float = AUDIT_RATE
    budget: Budget = field(default_factory=Budget)
    priors: Mapping[str, float] = field(default_factory=dict)
    spare: int = 0
    levels: Sequence[Recipe] = LEVELS
    audits: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.target < math.inf:
            raise UsageError(
                f"target_divergence {self.target!r} is negative or not finite: use nats such as "
                f"{TARGET}, or 0 for exact reuse only"
            )
        if not 0 <= self.rate <= 1:
            raise UsageError(f"audit_rate {self.rate!r} is no share: use 0 to 1, such as 0.1")

    def choose(
        self,
        template: str,
        verdicts: Mapping[str, Verdict],
        *,
        tokens: int = 0,
        steps: int = 0,
        seed: int = 0,
    ) -> Choice:
        """The way of a call.

        `verdicts` are those of its placeholders. It may have `tokens` to compute, and up to `steps`
        decoding steps are taken before its last input is complete. `seed` is the call's own.
        """
        ready = [v for v in verdicts.values() if v.shareable]
        if not ready:
            reasons = dict.fromkeys(v.reason for v in verdicts.values())
            why = "; ".join(reasons) if reasons else "no message or passage to realign"
            return Choice(Exact(f"auto: exact, {why}"))
        if 0 < tokens <= self.spare * steps:
            return Choice(Exact("auto: exact, computing ahead is free here"))
        error = max(v.error for v in ready)
        drawn = random.Random(seed).random() < self.rate
        bounds = {level.name: self.bound(template, level, error) for level in self.levels}
        for level in self.levels:
            bound = bounds[level.name]
            if bound <= self.target:
                count = len(self._seen(template, level))
                basis = f"{count} audits" if count >= ENOUGH else "prior"
                reason = f"auto: {level.name}, bound {bound:.4f} ({basis}) ≤ {self.target:g}"
                policy = Realign(level, reason, self.budget)
                return Choice(policy, level, True, drawn or count < ENOUGH, bound)
        probe = self._probe(template, drawn, seed)
        known = ", ".join(f"{name} {bound:.3f}" for name, bound in bounds.items())
        exact = Exact(f"auto: exact, no bound ≤ {self.target:g} ({known})")
        return Choice(exact, probe, bound=bounds[probe.name] if probe else None)

    def bound(self, template: str, level: Recipe, error: float) -> float:
        """What the divergence of a level stays below on average, as far as is known."""
        seen = self._seen(template, level)
        if len(seen) < ENOUGH:
            prior = self.priors.get(level.name, math.inf) * error
            return max(prior, statistics.fmean(seen)) if seen else prior
        return statistics.fmean(seen) + Z95 * statistics.stdev(seen) / math.sqrt(len(seen))

    def record(self, template: str, level: str, divergence: float) -> None:
        """Count one audit or probe."""
        key = (template, level)
        self.audits.setdefault(key, deque(maxlen=WINDOW)).append(divergence)

    def _probe(self, template: str, drawn: bool, seed: int) -> Recipe | None:
        """The level to measure beside an exact call: unknown ones first, then a draw."""
        if self.target == 0:
            return None
        for level in self.levels:
            if len(self._seen(template, level)) < ENOUGH:
                return level
        return random.Random(seed + 1).choice(self.levels) if drawn else None

    def _seen(self, template: str, level: Recipe) -> Sequence[float]:
        return self.audits.get((template, level.name), ())

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """The audits by template and level."""
        found: dict[str, dict[str, list[float]]] = {}
        for (template, level), seen in self.audits.items():
            found.setdefault(template, {})[level] = list(seen)
        return found

    def load_json(self, value: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Take up audits that `to_json` returned. Raises `ValueError` for anything else."""
        audits = {}
        for template, levels in value.items():
            for level, seen in levels.items():
                numbers = [float(number) for number in seen]
                if not all(0 <= number < math.inf for number in numbers):
                    raise ValueError(f"audits of {template} hold a number that is no divergence")
                audits[template, level] = deque(numbers, maxlen=WINDOW)
        self.audits = audits
