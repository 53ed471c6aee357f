"""The controller of `auto`: which calls may be realigned, how far, and which are audited.

A level is a share of the texts' tokens that is computed: 10 to 50 %. For every template, kind of
base KV and level it keeps the divergences that audits measured. A level may be used when its bound
meets the target:

    fewer than 4 audits:  bound = max(2 · prior(level) · error, mean)
    from 4 audits on:     bound = exp(m + v/2 + t · sqrt(v/n + v²/(2f)))    (of the last 30)

and what computes more errs no more: a level's bound is at most that of a smaller share.

The prior was measured on this model with base KV only rotated, on texts that may be easier than
those to come: hence the 2. error is the share of squared offset error that the offset models leave,
1 where none is used: then base KV is only rotated. Of long texts rotated KV errs several times
less: so there are levels that realign these and compute the others.

Divergences are skewed, most of them small and a few large, so their mean is bounded as that of a
lognormal distribution (Cox's method): m and v are mean and variance of their logarithms, none of
them below that of a twentieth of the target, t the 95 % quantile of Student's t with f degrees of
freedom. Few numbers say little of a variance, and it hardly differs between suites: 1 counts like
that of 10 audits, f = n + 9. One audit measures up to three levels, and tells what lies between two
of them: the logarithm falls evenly with the share. An audit is out of date when the models have
seen twice as much since: then new ones are made, and count alone from four on. The bound is looked
at before every call, and the call at which it first falls below the target is a lucky one: so it is
never less than the mean of what was delivered, and calls whose bound is over half the target are
all audited.

Of the levels that meet the target the one that computes least is taken. When none does, the call is
exact, and up to three levels that may do are probed on it: realigned beside it, after the answer,
and compared. What a level may come to is told by its neighbours: every 10 points more computed
leave three quarters. So what is delivered approximately was bounded or measured before, on the
first call too. A realigned call is audited until its level is known, then at a rate, and as long as
a cheaper level may do.

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
from kvcomm.reuse.plan import BaseKind, Predictability
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import HELPS, LINEAR, Realign, Recipe

TARGET = 0.02
AUDIT_RATE = 0.1
REPAIR_BUDGET = 0.5
ENOUGH = 4
SAFETY = 2.0
WINDOW = 30
# So many levels are probed beside one call.
PROBES = 3
# What 10 points more computed are expected to leave of a divergence.
FALLS = 0.75
# Behind the names of templates where no offsets are used: other audits.
ROTATED = ", rotated"
# Divergences below this share of the target count as so much. That bounds the mean from above, and
# tiny ones, whose logarithms are far apart, would make it look as if anything could come.
FLOOR = 0.05
# One-sided 95 % quantiles of Student's t for 4 to 18 degrees of freedom; behind, it hardly falls.
T95 = (2.13, 2.02, 1.94, 1.90, 1.86, 1.83, 1.81, 1.80, 1.78, 1.77, 1.76, 1.75, 1.75, 1.74, 1.73)
# The logarithms of a level's divergences have had about this variance wherever it was measured (0.6
# to 1.9). That counts like the variance of so many audits, as that of a few says little.
VARIANCE = 1.0
KNOWN = 10
# A bound over this share of the target is watched on every call.
NEAR = 0.5

SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
# Of a message's share so much is leading tokens: they saw least of what stood before the text.
LEADING = 0.6
# The longer a text is, the less its KV errs. The last levels realign texts of so many tokens only.
# Of these all that is computed is leading, so that it can be while a message is written: deviating
# tokens are known at its end.
LONG = 512


def _level(share: float, long: bool) -> Recipe:
    leading = share if long else LEADING * share
    return replace(
        LINEAR,
        name=f"long {share:.0%}" if long else f"{share:.0%}",
        short=LONG - 1 if long else LINEAR.short,
        first=LONG,
        leading=leading,
        deviating=share - leading,
        unknown="rotate",
        pooled=share,
    )


LEVELS = tuple(_level(share, long) for long in (False, True) for share in SHARES)
# Inputs, by how much their base KV errs.
INPUTS: tuple[BaseKind, ...] = ("alone", "borrowed", "mean")


@dataclass(frozen=True)
class Reusable:
    """A text of a call that has base KV: of which kind, how many tokens at most, its offsets."""

    kind: BaseKind
    tokens: int
    offset: Predictability

    @property
    def corrected(self) -> bool:
        """Whether offsets are used. They help with messages, and seldom with inputs."""
        helps = self.kind in ("message", "alone") or self.offset.error <= HELPS
        return self.offset.shareable and helps


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
    level is known, `budget` the most that is computed of realigned texts, as a share, and `priors`
    the divergence of each level without offsets, as "message 10%" and "borrowed 10%"; without
    priors levels have to be probed. Raises `UsageError` for values out of range.
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
            raise UsageError(f"repair_budget {self.budget!r} is no share: use 0 to 1, such as 0.5")

    def choose(
        self, template: str, texts: Sequence[Reusable], unread: int = 0, seed: int = 0
    ) -> Choice:
        """The way of a call.

        `texts` come with base KV; inputs of `unread` tokens have none. `seed` is the call's own.
        """
        if self.target == 0:
            return Choice(Exact("auto: exact, the target is 0"))
        if not texts:
            return Choice(Exact("auto: exact, no message, and no text that others read before"))
        if unread > sum(text.tokens for text in texts):
            # Exact, they are known from now on; behind realigned texts they would not be.
            return Choice(Exact("auto: exact, most of its texts were never read before"))
        case = _Case(self, template, texts)
        if not case.levels:
            longest = max(text.tokens for text in texts)
            return Choice(Exact(f"auto: exact, no text is longer than {longest} tokens"))
        bounds = {level.name: case.bound(level) for level in case.levels}
        drawn = random.Random(seed).random() < self.rate
        for index, level in enumerate(case.levels):
            bound = bounds[level.name]
            if bound > self.target:
                continue
            unknown = len(case.fresh(level)) < ENOUGH
            count = len(case.seen(level))
            basis = f"{count} audits" if count >= ENOUGH else "prior"
            reason = f"auto: {level.name}, bound {bound:.4f} ({basis}) ≤ {self.target:g}"
            found = [x for x in case.levels[:index] if case.explores(x, drawn)]
            cheaper = _spread(found, PROBES - 1)
            audited = drawn or bound > NEAR * self.target or unknown or cheaper
            policy = Realign(level, reason, self.budget, borrows=True)
            measured = (level, *cheaper) if audited else ()
            return Choice(policy, True, measured, bounds, case.samples, case.key)
        listed = ", ".join(f"{name} {bound:.3f}" for name, bound in bounds.items())
        if all(map(math.isinf, bounds.values())):
            listed = "nothing is known of the model yet"
        elif len(bounds) > PROBES:
            name, bound = min(bounds.items(), key=lambda item: item[1])
            listed = f"{name} {bound:.3f}"
        offsets = [text.offset for text in texts if not text.corrected]
        why = "".join(dict.fromkeys(f"; {offset.reason}" for offset in offsets))
        exact = Exact(f"auto: exact, no bound ≤ {self.target:g} ({listed}){why}")
        return Choice(exact, False, case.probes(drawn), bounds, case.samples, case.key)

    def record(
        self, template: str, found: Mapping[str, float], samples: int, used: str = ""
    ) -> None:
        """Count an audit that `found` the divergences of levels, the `used` one's among them.

        It was made when the offset models had seen `samples`.
        """
        for level, divergence in _between(found, self.levels).items():
            self._count(template, level, Seen(divergence, samples, level == used))

    def _count(self, template: str, level: str, seen: Seen) -> None:
        self._keep(template, level, seen)
        self.unsaved.add(template)
        if self.untaken is not None:
            self.untaken.append((template, level, seen))

    def _keep(self, template: str, level: str, seen: Seen) -> None:
        self.audits.setdefault((template, level), deque(maxlen=WINDOW)).append(seen)

    def record_all(self, taken: Sequence[tuple[str, str, Seen]]) -> None:
        """Count what another one's `take` returned."""
        for template, level, seen in taken:
            self._count(template, level, seen)

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


@dataclass
class _Case:
    """One call: the levels that realign anything of it, cheapest first, and what is known of them.

    Its audits are kept by template, by whether it reads messages, and by the kind of its inputs
    that errs most.
    """

    auto: Auto
    template: str
    texts: Sequence[Reusable]
    levels: list[Recipe] = field(init=False)
    kinds: list[BaseKind] = field(init=False)
    samples: int = field(init=False)
    error: float = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        sizes = [text.tokens for text in self.texts]
        corrected = [text.offset for text in self.texts if text.corrected]
        found = {text.kind for text in self.texts}
        self.kinds = [kind for kind in INPUTS if kind in found][:1]
        self.kinds += ["message"] if "message" in found else []
        self.samples = min((offset.samples for offset in corrected), default=0)
        every = len(corrected) == len(self.texts)
        self.error = max((offset.error for offset in corrected), default=1.0) if every else 1.0
        self.key = self._key(self.kinds)
        levels = [x for x in self.auto.levels if x.short < max(sizes)]
        if "message" not in found and min(sizes) >= LONG:
            levels = [x for x in levels if x.short < LONG - 1]  # they would all be the same
        if not corrected:
            levels = [replace(level, offsets="") for level in levels]
        self.levels = sorted(levels, key=self._cost)

    def _key(self, kinds: Sequence[BaseKind]) -> str:
        rotated = "" if any(text.corrected for text in self.texts) else ROTATED
        return f"{self.template}, {' '.join(kinds)}{rotated}"

    def _cost(self, level: Recipe) -> float:
        share = level.leading + level.deviating
        return sum(text.tokens * (share if text.tokens > level.short else 1) for text in self.texts)

    def bound(self, level: Recipe) -> float:
        """What the divergence of a level stays below on average, as far as is known."""
        keys = [self.key]
        if self.kinds[0] == "mean":  # a mean errs less than what it is made of
            keys.append(self._key(["borrowed", *self.kinds[1:]]))
        return min(
            self._own(key, x)
            for x in self.levels
            if x.short == level.short and _share(x) <= _share(level)
            for key in keys
        )

    def _own(self, key: str, level: Recipe) -> float:
        """The bound by a level's own audits, or its prior."""
        seen = self.seen(level, key)
        if len(seen) < ENOUGH:
            prior = SAFETY * self._prior(level) * self.error
            return max(prior, statistics.fmean(seen)) if seen else prior
        audits = self.auto.audits[key, level.name]
        delivered = [audit.divergence for audit in audits if audit.used]
        floor = FLOOR * self.auto.target
        return max(
            _upper(seen, floor), *(statistics.fmean(group) for group in (seen, delivered) if group)
        )

    def _prior(self, level: Recipe) -> float:
        names = ["borrowed" if kind == "mean" else kind for kind in self.kinds]
        return max(self.auto.priors.get(f"{name} {level.name}", math.inf) for name in names)

    def open(self, level: Recipe) -> bool:
        """Whether more audits may show that a level meets the target."""
        return len(self.seen(level)) < WINDOW and self._expected(level) <= self.auto.target

    def _expected(self, level: Recipe) -> float:
        """The mean divergence of a level, as its nearest neighbour with enough audits says."""
        known = [
            (abs(_share(x) - _share(level)), statistics.fmean(seen) * _falls(x, level))
            for x in self.levels
            if x.short == level.short and len(seen := self.seen(x)) >= ENOUGH
        ]
        return min(known, default=(0.0, 0.0))[1]

    def explores(self, level: Recipe, drawn: bool) -> bool:
        """Whether a level is measured beside a dearer one: a while, then with the `drawn`."""
        return self.open(level) and (drawn or len(self.seen(level)) < 4 * ENOUGH)

    def probes(self, drawn: bool) -> tuple[Recipe, ...]:
        """The levels to measure beside an exact call: those that may do, spread over the ladder.

        Beside calls that are `drawn` any may: what was measured first may have been unlucky. What
        rotating alone would have done is of no interest where offsets will soon be known.
        """
        for text in self.texts:
            learns = text.kind in ("message", "alone") and not text.corrected
            if learns and text.offset.samples < ENOUGH:
                return ()
        found = [level for level in self.levels if drawn or self.open(level)]
        return tuple(_spread(found, PROBES))

    def fresh(self, level: Recipe, key: str = "") -> list[float]:
        """The divergences that are not out of date."""
        audits = self.auto.audits.get((key or self.key, level.name), ())
        return [seen.divergence for seen in audits if 2 * seen.samples >= self.samples]

    def seen(self, level: Recipe, key: str = "") -> list[float]:
        """The fresh divergences, if there are enough; else all: old ones err on the safe side."""
        fresh = self.fresh(level, key)
        if len(fresh) >= ENOUGH:
            return fresh
        return [seen.divergence for seen in self.auto.audits.get((key or self.key, level.name), ())]


def _share(level: Recipe) -> float:
    """What is computed of the texts that a level realigns."""
    return level.leading + level.deviating


def _spread(levels: Sequence[Recipe], count: int) -> list[Recipe]:
    """So many levels of these at most, from the first to the last."""
    last = len(levels) - 1
    if last < count:
        return [*levels]
    return [levels[round(i * last / (count - 1))] for i in range(count)]


def _between(found: Mapping[str, float], levels: Sequence[Recipe]) -> dict[str, float]:
    """The divergences that one audit found, and what they tell of the levels between.

    From one measured share to the next the logarithm is taken to fall evenly.
    """
    told = dict(found)
    for level in levels:
        if level.name in found:
            continue
        measured = [x for x in levels if x.name in found and x.short == level.short]
        below = max((x for x in measured if _share(x) < _share(level)), key=_share, default=None)
        above = min((x for x in measured if _share(x) > _share(level)), key=_share, default=None)
        if below and above:
            part = (_share(level) - _share(below)) / (_share(above) - _share(below))
            told[level.name] = found[below.name] ** (1 - part) * found[above.name] ** part
    return told


def _falls(known: Recipe, level: Recipe) -> float:
    """What one level's divergence is expected to be of another one's."""
    return float(FALLS ** ((_share(level) - _share(known)) / 0.1))


def _upper(values: Sequence[float], floor: float) -> float:
    """The upper 95 % bound on the mean of a lognormal distribution, by Cox's method."""
    logs = [math.log(max(value, floor)) for value in values]
    count, freedom = len(logs), KNOWN + len(logs) - 1
    variance = (KNOWN * VARIANCE + (count - 1) * statistics.variance(logs)) / freedom
    error = math.sqrt(variance / count + variance**2 / (2 * freedom))
    return math.exp(
        statistics.fmean(logs) + variance / 2 + T95[min(freedom - 4, len(T95) - 1)] * error
    )
