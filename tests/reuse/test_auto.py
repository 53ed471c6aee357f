"""The controller of auto: bounds, choices, probes, audits."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.reuse.auto import ENOUGH, LEVELS, LONG, SHARES, WINDOW, Auto
from kvcomm.reuse.plan import Predictability, SegmentFacts
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import Realign

ANY = [level for level in LEVELS if level.short < LONG - 1]
CHEAP, MIDDLE, DEAR = (level.name for level in ANY)


def known(samples: int = 10, error: float = 0.5) -> Predictability:
    return Predictability(True, f"linear offsets: {samples} samples", samples, error)


UNKNOWN = Predictability(False, "too little learned: 0 samples", 0)


def auto(target: float = 0.02, rate: float = 0.0, prior: float = 1.0, **fields: object) -> Auto:
    return Auto(target, rate, priors={level.name: prior for level in LEVELS}, **fields)  # type: ignore[arg-type]


def audited(
    made: Auto,
    level: str,
    divergence: float,
    count: int = ENOUGH,
    samples: int = 10,
    used: bool = False,
) -> None:
    for _ in range(count):
        made.record("t", level, divergence, samples, used=used)


def test_it_needs_no_torch() -> None:
    code = "import sys, kvcomm.reuse.auto; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_first_calls_are_exact_where_rotating_alone_would_err_too_much() -> None:
    choice = auto().choose("t", {"solver": UNKNOWN})
    assert isinstance(choice.policy, Exact)
    assert "no bound" in choice.policy.reason
    assert UNKNOWN.reason in choice.policy.reason
    assert not choice.measured  # it will soon do more than rotate
    assert "no message" in auto().choose("t", {}).policy.reason


def test_the_first_call_is_realigned_where_rotating_alone_is_known_to_be_enough() -> None:
    small = auto()
    small.priors = dict.fromkeys(small.priors, small.target / 2)
    choice = small.choose("t", {"solver": UNKNOWN})
    assert isinstance(choice.policy, Realign)
    assert choice.used
    assert choice.policy.options.bases == "borrowed"
    assert choice.policy.reason == "auto: light, bound 0.0200 (prior) ≤ 0.02"
    assert choice.measured[0] == replace(LEVELS[0], offsets="")


def test_long_texts_have_levels_of_their_own() -> None:
    made = auto()
    made.priors["long-medium"] = 0.009
    names = [name for name, *_ in SHARES]
    assert list(made.choose("t", {"a": UNKNOWN}, longest=LONG - 1).bounds) == names
    choice = made.choose("t", {"a": UNKNOWN}, longest=LONG)
    assert set(choice.bounds) == {level.name for level in LEVELS}
    assert isinstance(choice.policy, Realign)
    assert choice.policy.reason == "auto: long-medium, bound 0.0180 (prior) ≤ 0.02"
    facts = [
        SegmentFacts("placeholder", "a", size, tuple(range(size)), UNKNOWN) for size in (511, 512)
    ]
    assert [step.source for step in choice.policy.plan(facts).segments] == ["compute", "realign"]
    # All levels that realign more may do as well.
    assert [x.name for x in choice.measured] == ["long-medium", *names, "long-light"]


def test_where_no_text_is_worth_it_the_call_is_exact() -> None:
    choice = auto(prior=0.0).choose("t", {"a": UNKNOWN}, longest=24)
    assert isinstance(choice.policy, Exact)
    assert choice.policy.reason == "auto: exact, no text is longer than 24 tokens"
    assert not choice.measured


def test_audits_made_in_two_places_are_told_to_both_once() -> None:
    total, here, there = auto(), auto(), auto()
    for place in (here, there):
        place.adopt(total.to_json(), {"light": 0.5})
    here.record("t", "light", 0.1, 3, used=True)
    there.record("t", "light", 0.2, 4, used=False)
    for place in (here, there):
        for template, level, seen in place.take():
            total.record(template, level, seen.divergence, seen.samples, used=seen.used)
        assert place.take() == []
    there.record("t", "heavy", 0.3, 5, used=False)  # not taken yet
    for _ in range(2):
        here.adopt(total.to_json(), {})
        there.adopt(total.to_json(), {})
    assert here.audits == total.audits
    assert [seen.divergence for seen in total.audits["t", "light"]] == [0.1, 0.2]
    assert there.audits["t", "light"] == total.audits["t", "light"]
    assert [seen.divergence for seen in there.audits["t", "heavy"]] == [0.3]
    assert here.priors == {"light": 0.5}


def test_audits_of_rotating_alone_say_nothing_of_offsets() -> None:
    made = auto(prior=0.01)
    first = made.choose("t", {"solver": UNKNOWN})
    assert first.used
    for _ in range(ENOUGH):
        made.record(first.key, CHEAP, 0.5, first.samples, used=True)
    assert made.choose("t", {"solver": UNKNOWN}).bounds[CHEAP] >= 0.5
    assert made.choose("t", {"solver": known(error=0.5)}).bounds[CHEAP] == pytest.approx(0.01)


def test_what_a_model_says_before_it_can_be_used_does_not_count() -> None:
    def bounds(**verdicts: Predictability) -> object:
        return auto().choose("t", verdicts).bounds

    early = replace(UNKNOWN, error=0.1)
    assert bounds(solver=early) == bounds(solver=UNKNOWN)
    assert bounds(solver=known(error=0.1), critic=early) == bounds(critic=UNKNOWN)


def test_what_is_not_known_yet_keeps_nobody_from_realigning_the_rest() -> None:
    choice = auto(prior=0.01).choose("t", {"solver": known(), "critic": UNKNOWN})
    assert isinstance(choice.policy, Realign)
    facts = [
        SegmentFacts("placeholder", name, 60, tuple(range(60)), verdict)
        for name, verdict in (("solver", known()), ("critic", UNKNOWN))
    ]
    steps = choice.policy.plan(facts).segments
    assert [step.source for step in steps] == ["realign", "realign"]
    assert [step.corrected for step in steps] == [True, False]
    assert choice.key == "t"


def test_offsets_that_are_never_predictable_are_done_without() -> None:
    never = Predictability(False, "offsets not predictable: 5 samples, error left 1.00", ENOUGH)
    made = auto()
    choice = made.choose("t", {"a": never})
    assert [level.name for level in choice.measured] == [CHEAP, MIDDLE, DEAR]
    for _ in range(ENOUGH):
        made.record(choice.key, CHEAP, 0.004, choice.samples, used=False)
    assert made.choose("t", {"a": never}).used


def test_what_is_unknown_is_probed_beside_exact_calls() -> None:
    choice = auto().choose("t", {"solver": known()})
    assert isinstance(choice.policy, Exact)
    assert not choice.used
    assert [level.name for level in choice.measured] == [CHEAP, MIDDLE, DEAR]
    assert choice.samples == 10
    assert choice.bounds[CHEAP] == 1.0  # twice the prior of 1, half of the error left


def test_a_prior_below_the_target_lets_a_level_be_used_and_audits_it() -> None:
    made = auto(prior=0.015)
    choice = made.choose("t", {"solver": known(error=0.5)})
    assert isinstance(choice.policy, Realign)
    assert choice.policy.recipe.name == CHEAP
    assert choice.used
    assert [level.name for level in choice.measured] == [CHEAP]
    assert choice.policy.reason == f"auto: {CHEAP}, bound 0.0150 (prior) ≤ 0.02"


def test_one_bad_audit_outweighs_a_good_prior() -> None:
    made = auto(prior=0.001)
    audited(made, CHEAP, 0.5, count=1)
    choice = made.choose("t", {"solver": known()})
    assert isinstance(choice.policy, Realign)
    assert choice.policy.recipe.name == MIDDLE


def test_five_good_audits_outweigh_a_bad_prior() -> None:
    made = auto(prior=10.0)
    audited(made, CHEAP, 0.009, count=ENOUGH - 1)
    assert isinstance(made.choose("t", {"solver": known()}).policy, Exact)
    audited(made, CHEAP, 0.009, count=1)
    choice = made.choose("t", {"solver": known()})
    assert choice.used
    assert not choice.measured  # known, and the rate is 0
    assert "(5 audits)" in choice.policy.reason


def test_the_cheapest_level_that_meets_the_target_is_taken() -> None:
    made = auto()
    audited(made, CHEAP, 0.03)
    audited(made, MIDDLE, 0.019)
    audited(made, DEAR, 0.001)
    choice = made.choose("t", {"solver": known()})
    assert isinstance(choice.policy, Realign)
    assert choice.policy.recipe.name == MIDDLE


def test_cheaper_levels_that_may_do_as_well_are_measured_with_an_audit() -> None:
    made = auto()
    for divergence in (0.001, 0.001, 0.001, 0.04, 0.05):
        made.record("t", CHEAP, divergence, 10, used=False)  # mean 0.019, bound above
    audited(made, MIDDLE, 0.03)
    audited(made, DEAR, 0.001)
    choice = made.choose("t", {"solver": known()})
    assert isinstance(choice.policy, Realign)
    assert choice.policy.recipe.name == DEAR
    assert [level.name for level in choice.measured] == [DEAR, CHEAP]
    audited(made, CHEAP, 0.019, count=WINDOW)  # within the target now
    assert made.choose("t", {"solver": known()}).policy.recipe.name == CHEAP  # type: ignore[union-attr]


def test_a_level_whose_delivered_answers_missed_the_target_is_left() -> None:
    """However well it does in the probes beside exact calls."""
    made = auto()
    audited(made, CHEAP, 0.001, count=20)
    audited(made, CHEAP, 0.025, count=2, used=True)
    bound = made.bound("t", LEVELS[0], 0.5, 10)
    assert bound >= 0.025
    assert not made.choose("t", {"solver": known()}).used
    audited(made, CHEAP, 0.001, count=WINDOW)  # the old ones are forgotten
    assert made.choose("t", {"solver": known()}).used


@pytest.mark.parametrize(("count", "t"), [(5, 2.132), (10, 1.833), (20, 1.729)])
def test_the_bound_is_coxs_bound_on_the_mean(count: int, t: float) -> None:
    draw = random.Random(count)
    values = [math.exp(draw.gauss(-5, 1)) for _ in range(count)]
    made = auto()
    for value in values:
        made.record("t", CHEAP, value, 10, used=False)
    logs = [math.log(max(value, 0.001)) for value in values]
    mean, variance = statistics.fmean(logs), statistics.variance(logs)
    error = math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    expected = math.exp(mean + variance / 2 + t * error)
    assert made.bound("t", LEVELS[0], 0.5, 10) == pytest.approx(expected, rel=0.01)


def test_the_bound_covers_the_mean_of_skewed_divergences() -> None:
    """Five of six times at least, though most of the values lie far below their mean."""
    draw, covered = random.Random(1), 0
    true = math.exp(-5 + 1.3**2 / 2)
    for _ in range(400):
        made = auto()
        for _ in range(8):
            made.record("t", CHEAP, math.exp(draw.gauss(-5, 1.3)), 10, used=False)
        covered += made.bound("t", LEVELS[0], 0.5, 10) >= true
    assert covered >= 335


def test_tiny_divergences_do_not_make_the_others_look_worse() -> None:
    tiny, none = auto(), auto()
    for value in (0.004, 0.006, 0.003, 0.009):
        tiny.record("t", CHEAP, value, 10, used=False)
        none.record("t", CHEAP, value, 10, used=False)
    tiny.record("t", CHEAP, 0.02 / 20, 10, used=False)
    none.record("t", CHEAP, 1e-12, 10, used=False)
    bound = tiny.bound("t", LEVELS[0], 0.5, 10)
    assert bound == none.bound("t", LEVELS[0], 0.5, 10) < 0.02


@given(st.lists(st.floats(0, 1), min_size=ENOUGH, max_size=WINDOW))
def test_the_bound_is_never_below_the_mean(values: list[float]) -> None:
    made = auto()
    for value in values:
        made.record("t", CHEAP, value, 10, used=False)
    assert made.bound("t", LEVELS[0], 0.5, 10) >= statistics.fmean(values)


def test_audits_are_out_of_date_when_twice_as_much_was_learned() -> None:
    made = auto()
    for level in LEVELS:
        audited(made, level.name, 0.5, samples=21 if level.name != CHEAP else 10)
    assert not made.choose("t", {"solver": known(20)}).measured
    choice = made.choose("t", {"solver": known(21)})
    assert [level.name for level in choice.measured] == [CHEAP]
    # They still count, until five new ones are there: old ones err on the safe side.
    assert made.bound("t", LEVELS[0], 0.1, 21) == pytest.approx(0.5)
    audited(made, CHEAP, 0.01, samples=21)
    assert made.bound("t", LEVELS[0], 0.1, 21) == pytest.approx(0.01)


def test_known_levels_are_audited_at_the_rate() -> None:
    made = auto(rate=0.25)
    audited(made, CHEAP, 0.001)
    choices = [made.choose("t", {"a": known()}, seed=seed) for seed in range(400)]
    share = sum(bool(choice.measured) for choice in choices) / 400
    assert 0.18 < share < 0.32
    again = [made.choose("t", {"a": known()}, seed=seed) for seed in range(400)]
    assert [c.measured for c in choices] == [c.measured for c in again]


def test_a_target_of_zero_is_exact_and_measures_nothing() -> None:
    made = auto(target=0)
    audited(made, CHEAP, 0.0)
    choice = made.choose("t", {"a": known()})
    assert isinstance(choice.policy, Exact)
    assert not choice.measured


@given(
    st.floats(0.001, 1),
    st.lists(st.tuples(st.sampled_from([CHEAP, MIDDLE, DEAR]), st.floats(0, 2)), max_size=40),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_what_is_used_has_a_bound_within_the_target(
    target: float, audits: list[tuple[str, float]], error: float, seed: int
) -> None:
    made = auto(target=target, rate=0.5, prior=0.05)
    for level, divergence in audits:
        made.record("t", level, divergence, 10, used=False)
    choice = made.choose("t", {"a": known(error=error)}, seed=seed)
    if choice.used:
        assert isinstance(choice.policy, Realign)
        assert choice.bounds[choice.policy.recipe.name] <= target


def test_audits_survive_json() -> None:
    made = auto()
    audited(made, CHEAP, 0.01)
    other = auto()
    other.load_json(json.loads(json.dumps(made.to_json())))
    assert other.audits == made.audits


@pytest.mark.parametrize("pairs", [[[-1.0, 3]], [["x", 3]], [[float("nan"), 3]], [[0.1, -2]]])
def test_damaged_audits_are_refused(pairs: list[list[object]]) -> None:
    made = auto()
    with pytest.raises(ValueError):
        made.load_json({"t": {CHEAP: pairs}})  # type: ignore[dict-item]
    assert not made.audits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": -0.1}, "target_divergence -0.1 is negative"),
        ({"target": math.nan}, "not finite"),
        ({"rate": 1.5}, "audit_rate 1.5 is no share"),
        ({"budget": 2.0}, "repair_budget 2.0 is no share"),
    ],
)
def test_options_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Auto(**fields)
