"""The controller of `auto`: which calls may be realigned, how far, and which are audited.

For every template and level (a recipe) it keeps the divergences that audits measured. A level may
be used when its bound meets the target:

    fewer than 5 audits:  bound = max(2 · prior(level) · error, mean)
    from 5 audits on:     bound = exp(m + v/2 + t · sqrt(v/n + v²/(2n − 2)))    (of the last 30)

The prior was measured on this model with base KV only rotated, on texts that may be easier than
those to come: hence the 2. error is the share of squared offset error that the offset models leave,
1 while they know too little to be used: then a level only rotates. Of long texts rotated KV errs
several times less: so there are levels that realign these and compute the others.

Divergences are skewed, most of them small and a few large, so their mean is bounded as that of a
lognormal distribution (Cox's method): m and v are mean and variance of their logarithms, none of
them below that of a twentieth of the target, t the 95 % quantile of Student's t with n − 1 degrees
of freedom. An audit is out of date when the models have seen twice as much since: then new ones are
made, and count alone from five on. The bound is looked at before every call, and the call at which
it first falls below the target is a lucky one: so it is never less than the mean of what was
delivered, and calls whose bound is over half the target are all audited.

Of the levels that meet the target the cheapest is taken. When none does, the call is exact, and
levels that may still do are probed on it: realigned beside it, after the answer, and compared. So
what is delivered approximately was bounded or measured before, on the first call too. A realigned
call is audited until its level is known, then at a rate, and as long as a cheaper level may do.

Pure: no tensors, no clock, no randomness but seeded.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Predictability
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import LINEAR, Realign, Recipe

TARGET = 0.02
AUDIT_RATE = 0.1
REPAIR_BUDGET = 0.25
ENOUGH = 5
SAFETY = 2.0
WINDOW = 30
# Behind the names of templates whose offsets are not known yet: other audits.
ROTATED = ", rotated"
# Divergences below this share of the target count as so much. That bounds the mean from above, and
# tiny ones, whose logarithms are far apart, would make it look as if anything could come.
FLOOR = 0.05
# One-sided 95 % quantiles of Student's t for 4 to 18 degrees of freedom; behind, it hardly falls.
T95 = (2.13, 2.02, 1.94, 1.90, 1.86, 1.83, 1.81, 1.80, 1.78, 1.77, 1.76, 1.75, 1.75, 1.74, 1.73)
# A bound over this share of the target is watched on every call.
NEAR = 0.5

# Cheapest first. In long texts a share of leading tokens is worth more than a few of them: they
# saw least of what stood before the text.
AUTO = replace(LINEAR, first=512, deviating=0.0, unknown="rotate")
SHARES = (("light", 0.06, 0.03), ("medium", 0.1, 0.06), ("heavy", 0.15, 0.12))
# The longer a text is, the less its KV errs. The last levels realign texts of so many tokens only.
# Of these all that is computed is leading, so that it can be while a message is written: deviating
# tokens are known at its end.
LONG = 512
LEVELS = (
    *(replace(AUTO, name=name, leading=first, deviating=most) for name, first, most in SHARES),
    *(
        replace(AUTO, name=f"long-{name}", short=LONG - 1, leading=first + most)
        for name, first, most in SHARES
    ),
)


@dataclass(frozen=True)
class Choice:
    """How one call is done: its policy, and the levels that are measured with it.

    `used`: the call is realigned; if it is audited, `measured` begins with its level, and goes on
    with cheaper ones that may do as well. Otherwise the call is exact, and the levels are probed
    beside it. `bounds` holds what is expected at most of each, `samples` what the offset models had
    seen; audits are kept under `key`.
    """

    policy: Exact | Realign
    used: bool = False
    measured: tuple[Recipe, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    key: str = ""


@dataclass(frozen=True)
class Seen:
    """One audit: the divergence in nats, and how many samples the offset models had seen.

    `used`: the answer was delivered.
    """

    divergence: float
    samples: int
    used: bool = False


@dataclass
class Auto:
    """Chooses per call, and learns from audits.

    `target` is the mean divergence in nats to stay below, `rate` the share of calls audited once a
    level is known, `budget` the most that is computed of a realigned placeholder, as a share, and
    `priors` the divergence of each level without offsets; without priors levels have to be probed.
    Raises `UsageError` for values out of range.
    """

    target: float = TARGET
    rate: float = AUDIT_RATE
    budget: float = REPAIR_BUDGET
    priors: Mapping[str, float] = field(default_factory=dict)
    levels: Sequence[Recipe] = LEVELS
    audits: dict[tuple[str, str], deque[Seen]] = field(default_factory=dict)
    unsaved: set[str] = field(default_factory=set)  # templates with audits that are not on disk
    # Audits that another one is to be told; None where nobody takes them.
    untaken: list[tuple[str, str, Seen]] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.target < math.inf:
            raise UsageError(
                f"target_divergence {self.target!r} is negative or not finite: use nats such as "
                f"{TARGET}, or 0 for exact reuse only"
            )
        if not 0 <= self.rate <= 1:
            raise UsageError(f"audit_rate {self.rate!r} is no share: use 0 to 1, such as 0.1")
        if not 0 <= self.budget <= 1:
            raise UsageError(f"repair_budget {self.budget!r} is no share: use 0 to 1, such as 0.25")

    def choose(
        self,
        template: str,
        offsets: Mapping[str, Predictability],
        *,
        longest: int = LONG - 1,
        seed: int = 0,
    ) -> Choice:
        """The way of a call.

        `offsets` are those of the placeholders that come with base KV, and the `longest` of them
        may have so many tokens. `seed` is the call's own.
        """
        if self.target == 0:
            return Choice(Exact("auto: exact, the target is 0"))
        if not offsets:
            return Choice(Exact("auto: exact, no message, and no text that others read before"))
        # What is not known is only rotated; of some texts no offset is ever predictable.
        learned = any(v.shareable for v in offsets.values())
        key = template if learned else template + ROTATED
        error = max(v.error if v.shareable else 1.0 for v in offsets.values())
        samples = min(v.samples for v in offsets.values())
        levels = [x for x in self.levels if x.short < longest]
        if not levels:
            return Choice(Exact(f"auto: exact, no text is longer than {longest} tokens"))
        if not learned:
            levels = [replace(x, offsets="") for x in levels]
        bounds = {x.name: self.bound(key, x, error, samples) for x in levels}
        unknown = [x for x in levels if len(self._fresh(key, x, samples)) < ENOUGH]
        drawn = random.Random(seed).random() < self.rate
        for index, level in enumerate(levels):
            bound = bounds[level.name]
            if bound <= self.target:
                count = len(self._seen(key, level, samples))
                basis = "prior" if level in unknown else f"{count} audits"
                reason = f"auto: {level.name}, bound {bound:.4f} ({basis}) ≤ {self.target:g}"
                cheaper = [x for x in levels[:index] if self._undecided(key, x, samples)]
                near = bound > NEAR * self.target
                audited = drawn or near or level in unknown or cheaper
                policy = Realign(level, reason, self.budget, borrows=True)
                measured = (level, *cheaper) if audited else ()
                return Choice(policy, True, measured, bounds, samples, key)
        listed = ", ".join(f"{name} {bound:.3f}" for name, bound in bounds.items())
        if all(map(math.isinf, bounds.values())):
            listed = "nothing is known of the model yet"
        why = "".join(dict.fromkeys(f"; {v.reason}" for v in offsets.values() if not v.shareable))
        exact = Exact(f"auto: exact, no bound ≤ {self.target:g} ({listed}){why}")
        # What rotating alone would have done is of no interest where offsets will soon be known.
        settled = learned or samples >= ENOUGH
        open_ = [x for x in levels if x in unknown or self._undecided(key, x, samples)]
        probed = (levels if drawn else open_) if settled else []
        return Choice(exact, False, tuple(probed), bounds, samples, key)

    def bound(self, template: str, level: Recipe, error: float, samples: int) -> float:
        """What the divergence of a level stays below on average, as far as is known."""
        seen = self._seen(template, level, samples)
        if len(seen) < ENOUGH:
            prior = SAFETY * self.priors.get(level.name, math.inf) * error
            return max(prior, statistics.fmean(seen)) if seen else prior
        audits = self.audits[template, level.name]
        delivered = [audit.divergence for audit in audits if audit.used]
        floor = FLOOR * self.target
        return max(
            _upper(seen, floor), *(statistics.fmean(group) for group in (seen, delivered) if group)
        )

    def record(
        self, template: str, level: str, divergence: float, samples: int, *, used: bool
    ) -> None:
        """Count one audit (`used`) or probe, made when the offset models had seen `samples`."""
        seen = Seen(divergence, samples, used)
        self._keep(template, level, seen)
        self.unsaved.add(template)
        if self.untaken is not None:
            self.untaken.append((template, level, seen))

    def _keep(self, template: str, level: str, seen: Seen) -> None:
        self.audits.setdefault((template, level), deque(maxlen=WINDOW)).append(seen)

    def record_all(self, taken: Sequence[tuple[str, str, Seen]]) -> None:
        """Count what another one's `take` returned."""
        for template, level, seen in taken:
            self.record(template, level, seen.divergence, seen.samples, used=seen.used)

    def take(self) -> list[tuple[str, str, Seen]]:
        """The audits made here since the last `take`, by template and level, for another one."""
        found, self.untaken = self.untaken or [], []
        return found

    def adopt(
        self,
        audits: Mapping[str, Mapping[str, Sequence[tuple[float, int, bool]]]],
        priors: Mapping[str, float],
    ) -> None:
        """Know the audits and priors of one who takes these here, and what is not taken yet."""
        self.audits.clear()
        self.load_json(audits)
        self.priors = priors or self.priors
        self.untaken = self.untaken or []
        for template, level, seen in self.untaken:
            self._keep(template, level, seen)

    def _undecided(self, template: str, level: Recipe, samples: int) -> bool:
        """Whether more audits may show that the level meets the target: its mean does."""
        seen = self._seen(template, level, samples)
        return len(seen) < WINDOW and (not seen or statistics.fmean(seen) <= self.target)

    def _fresh(self, template: str, level: Recipe, samples: int) -> list[float]:
        """The divergences that are not out of date."""
        audits = self.audits.get((template, level.name), ())
        return [seen.divergence for seen in audits if 2 * seen.samples >= samples]

    def _seen(self, template: str, level: Recipe, samples: int) -> list[float]:
        """The fresh divergences, if there are enough; else all: old ones err on the safe side."""
        fresh = self._fresh(template, level, samples)
        if len(fresh) >= ENOUGH:
            return fresh
        return [seen.divergence for seen in self.audits.get((template, level.name), ())]

    def to_json(self) -> dict[str, dict[str, list[tuple[float, int, bool]]]]:
        """The audits by template and level."""
        found: dict[str, dict[str, list[tuple[float, int, bool]]]] = {}
        for (template, level), audits in self.audits.items():
            found.setdefault(template, {})[level] = [
                (s.divergence, s.samples, s.used) for s in audits
            ]
        return found

    def load_json(
        self, value: Mapping[str, Mapping[str, Sequence[tuple[float, int, bool]]]]
    ) -> None:
        """Add audits that `to_json` returned. Raises `ValueError` for anything else."""
        audits = {}
        for template, levels in value.items():
            for level, triples in levels.items():
                seen = [Seen(float(d), int(samples), bool(used)) for d, samples, used in triples]
                if not all(0 <= s.divergence < math.inf and s.samples >= 0 for s in seen):
                    raise ValueError(f"audits of {template} hold a number that is no divergence")
                audits[template, level] = deque(seen, maxlen=WINDOW)
        self.audits |= audits


def _upper(values: Sequence[float], floor: float) -> float:
    """The upper 95 % bound on the mean of a lognormal distribution, by Cox's method."""
    logs = [math.log(max(value, floor)) for value in values]
    count, variance = len(logs), statistics.variance(logs)
    error = math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    return math.exp(
        statistics.fmean(logs) + variance / 2 + T95[min(count - ENOUGH, len(T95) - 1)] * error
    )
