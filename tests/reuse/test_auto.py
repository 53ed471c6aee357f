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
from kvcomm.reuse.auto import (
    ENOUGH,
    FALLS,
    KNOWN,
    LEVELS,
    LONG,
    SHARES,
    VARIANCE,
    WINDOW,
    Auto,
    Choice,
    Reusable,
)
from kvcomm.reuse.plan import BaseKind, Predictability, SegmentFacts
from kvcomm.reuse.policy import Exact
from kvcomm.reuse.recipe import HELPS, Realign

NAMES = [f"{share:.0%}" for share in SHARES]
CHEAP, MIDDLE, DEAR = "10%", "20%", "50%"
MESSAGE, BORROWED = "t, message", "t, borrowed, rotated"


def known(samples: int = 10, error: float = 0.5) -> Predictability:
    return Predictability(True, f"linear offsets: {samples} samples", samples, error)


UNKNOWN = Predictability(False, "too little learned: 0 samples", 0)


def message(offset: Predictability = UNKNOWN, tokens: int = 100) -> Reusable:
    return Reusable("message", tokens, offset)


def passage(kind: BaseKind = "borrowed", tokens: int = 100, error: float = 1.0) -> Reusable:
    return Reusable(kind, tokens, replace(known(), error=error))


def auto(target: float = 0.02, rate: float = 0.0, prior: float = 1.0, **fields: object) -> Auto:
    priors = {f"{kind} {x.name}": prior for kind in ("message", "borrowed") for x in LEVELS}
    return Auto(target, rate, priors=priors, **fields)  # type: ignore[arg-type]


def audited(
    made: Auto,
    level: str,
    *values: float,
    count: int = ENOUGH,
    samples: int = 10,
    used: bool = False,
    key: str = MESSAGE,
) -> None:
    """One value `count` times, or these values."""
    for value in values * (count if len(values) == 1 else 1):
        made.record(key, {level: value}, samples, level if used else "")


def level_of(choice: Choice) -> str:
    """The level that is used; "" for an exact call."""
    return choice.policy.recipe.name if isinstance(choice.policy, Realign) else ""


def measured(choice: Choice) -> list[str]:
    return [level.name for level in choice.measured]


def bound(made: Auto, text: Reusable, level: str = CHEAP) -> float:
    return made.choose("t", [text]).bounds[level]


def test_it_needs_no_torch() -> None:
    code = "import sys, kvcomm.reuse.auto; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- what a call is like ---


def test_the_first_calls_are_exact_where_rotating_alone_would_err_too_much() -> None:
    choice = auto().choose("t", [message()])
    assert isinstance(choice.policy, Exact)
    assert "no bound" in choice.policy.reason
    assert UNKNOWN.reason in choice.policy.reason
    assert not choice.measured  # it will soon do more than rotate
    assert "no message" in auto().choose("t", []).policy.reason


def test_the_first_call_is_realigned_where_rotating_alone_is_known_to_be_enough() -> None:
    choice = auto(prior=0.01).choose("t", [message()])
    assert isinstance(choice.policy, Realign)
    assert choice.used
    assert choice.policy.options.bases == "borrowed"
    assert choice.policy.reason == "auto: 10%, bound 0.0200 (prior) ≤ 0.02"
    assert choice.measured[0] == replace(LEVELS[0], offsets="")


def test_long_texts_have_levels_of_their_own() -> None:
    made = auto()
    made.priors = {**made.priors, "message long 15%": 0.009}
    assert list(made.choose("t", [message(tokens=LONG - 1)]).bounds) == NAMES
    choice = made.choose("t", [message(tokens=LONG)])
    assert set(choice.bounds) == {level.name for level in LEVELS}
    assert isinstance(choice.policy, Realign)
    assert choice.policy.reason == "auto: long 15%, bound 0.0180 (prior) ≤ 0.02"
    facts = [
        SegmentFacts("placeholder", "a", size, tuple(range(size)), UNKNOWN, base="message")
        for size in (511, 512)
    ]
    assert [step.source for step in choice.policy.plan(facts).segments] == ["compute", "realign"]
    # Passages that are all long are realigned by all levels alike.
    assert list(made.choose("t", [passage(tokens=LONG)]).bounds) == NAMES


def test_where_no_text_is_worth_it_the_call_is_exact() -> None:
    choice = auto(prior=0.0).choose("t", [message(tokens=24)])
    assert isinstance(choice.policy, Exact)
    assert choice.policy.reason == "auto: exact, no text is longer than 24 tokens"
    assert not choice.measured


def test_what_nobody_has_read_is_computed_exactly_so_that_it_is_known() -> None:
    made = auto(prior=0.001)
    assert made.choose("t", [passage()], unread=100).used
    choice = made.choose("t", [passage()], unread=101)
    assert choice.policy.reason == "auto: exact, most of its texts were never read before"


def test_offsets_of_inputs_are_used_where_they_help() -> None:
    assert passage(error=HELPS).corrected
    assert not passage(error=HELPS + 0.01).corrected
    assert passage("alone", error=0.95).corrected
    assert message(known(error=0.95)).corrected


def test_audits_are_kept_by_the_kind_of_the_texts() -> None:
    made = auto()
    keys = [
        made.choose("t", texts).key
        for texts in (
            [passage(), passage("mean")],
            [passage("mean"), passage("mean")],
            [passage("alone"), passage(), message(known())],
            [message(known())],
        )
    ]
    assert keys == ["t, borrowed, rotated", "t, mean, rotated", "t, alone message", MESSAGE]


def test_a_mean_errs_no_more_than_what_it_is_made_of() -> None:
    made = auto()
    audited(made, MIDDLE, 0.004, key=BORROWED)
    assert level_of(made.choose("t", [passage("mean")])) == MIDDLE
    audited(made, CHEAP, 0.001, key="t, mean, rotated")
    assert level_of(made.choose("t", [passage("mean")])) == CHEAP
    assert level_of(made.choose("t", [passage()])) == MIDDLE


def test_audits_made_in_two_places_are_told_to_both_once() -> None:
    total, here, there = auto(), auto(), auto()
    for place in (here, there):
        place.adopt(total.to_json(), {"10%": 0.5})
    here.record("t", {"10%": 0.1}, 3, "10%")
    there.record("t", {"10%": 0.2}, 4)
    for place in (here, there):
        total.record_all(place.take())
        assert place.take() == []
    there.record("t", {"30%": 0.3}, 5)  # not taken yet
    for _ in range(2):
        here.adopt(total.to_json(), {})
        there.adopt(total.to_json(), {})
    assert here.audits == total.audits
    assert [seen.divergence for seen in total.audits["t", "10%"]] == [0.1, 0.2]
    assert there.audits["t", "10%"] == total.audits["t", "10%"]
    assert [seen.divergence for seen in there.audits["t", "30%"]] == [0.3]
    assert here.priors == {"10%": 0.5}


# --- what is known of levels ---


def test_audits_of_rotating_alone_say_nothing_of_offsets() -> None:
    made = auto(prior=0.01)
    first = made.choose("t", [message()])
    assert first.used
    audited(made, CHEAP, 0.5, key=first.key, used=True)
    assert bound(made, message()) >= 0.5
    assert bound(made, message(known())) == pytest.approx(0.01)


def test_what_a_model_says_before_it_can_be_used_does_not_count() -> None:
    early = replace(UNKNOWN, error=0.1)
    assert bound(auto(), message(early)) == bound(auto(), message())
    both = auto().choose("t", [message(known(error=0.1)), message(early)])
    assert both.bounds[CHEAP] == bound(auto(), message())


def test_offsets_that_are_never_predictable_are_done_without() -> None:
    never = Predictability(False, "offsets not predictable: 5 samples, error left 1.00", ENOUGH)
    made = auto()
    choice = made.choose("t", [message(never)])
    assert choice.measured
    audited(made, CHEAP, 0.004, key=choice.key)
    assert made.choose("t", [message(never)]).used


def test_a_few_levels_are_probed_beside_exact_calls_and_the_ladder_is_searched() -> None:
    made = auto()
    choice = made.choose("t", [passage()])
    assert (level_of(choice), measured(choice)) == ("", ["10%", "20%", "50%"])
    # Too much to be worth a look at what is far below the target's share.
    for _ in range(ENOUGH):
        made.record(BORROWED, {"10%": 0.06, "20%": 0.04, "50%": 0.003}, 10)
    # What one audit measures tells what is between: from 20 to 50 % the logarithm falls evenly.
    told = [seen.divergence for seen in made.audits[BORROWED, "30%"]]
    assert told == [pytest.approx(0.04 ** (2 / 3) * 0.003 ** (1 / 3))] * ENOUGH
    assert (BORROWED, "15%") in made.audits
    choice = made.choose("t", [passage()])
    assert level_of(choice) == "50%"
    assert measured(choice) == ["50%", "30%", "40%"]
    for _ in range(ENOUGH * 3):
        made.record(BORROWED, {"40%": 0.004, "50%": 0.003}, 10)
    assert level_of(made.choose("t", [passage()])) == "40%"


def test_a_level_that_was_not_measured_is_as_its_neighbours_say() -> None:
    made = auto()
    audited(made, "50%", 0.012, key=BORROWED, count=WINDOW - 1)
    assert 0.012 / FALLS < 0.02 < 0.012 / FALLS**2
    choice = made.choose("t", [passage()])
    assert (level_of(choice), measured(choice)) == ("50%", ["50%", "40%"])


def test_what_computes_more_errs_no_more() -> None:
    made = auto()
    audited(made, MIDDLE, 0.004)
    bounds = made.choose("t", [message(known())]).bounds
    assert bounds[CHEAP] == 1.0
    assert all(bounds[name] == bounds[MIDDLE] < 0.02 for name in NAMES[2:])


def test_one_bad_audit_outweighs_a_good_prior() -> None:
    made = auto(prior=0.001)
    audited(made, CHEAP, 0.5, count=1)
    assert level_of(made.choose("t", [message(known())])) == "15%"


def test_a_few_good_audits_outweigh_a_bad_prior() -> None:
    made = auto(prior=10.0)
    audited(made, CHEAP, 0.002, count=ENOUGH - 1)
    assert not made.choose("t", [message(known())]).used
    audited(made, CHEAP, 0.002, count=1)
    choice = made.choose("t", [message(known())])
    assert choice.used
    assert not choice.measured  # known, and the rate is 0
    assert "(4 audits)" in choice.policy.reason


def test_cheaper_levels_that_may_do_as_well_are_measured_with_an_audit() -> None:
    made = auto()
    audited(made, CHEAP, 0.001, 0.001, 0.001, 0.04, 0.05)  # mean 0.019, bound above
    audited(made, MIDDLE, 0.03)
    audited(made, DEAR, 0.001)
    choice = made.choose("t", [message(known())])
    assert level_of(choice) == DEAR
    assert measured(choice)[0] == DEAR
    assert len(choice.measured) <= 3
    audited(made, CHEAP, 0.01, count=WINDOW)  # within the target now
    assert level_of(made.choose("t", [message(known())])) == CHEAP


def test_a_level_whose_delivered_answers_missed_the_target_is_left() -> None:
    """However well it does in the probes beside exact calls."""
    made = auto()
    audited(made, CHEAP, 0.001, count=20)
    audited(made, CHEAP, 0.025, count=2, used=True)
    assert bound(made, message(known())) >= 0.025
    assert not made.choose("t", [message(known())]).used
    audited(made, CHEAP, 0.001, count=WINDOW)  # the old ones are forgotten
    assert made.choose("t", [message(known())]).used


@pytest.mark.parametrize(("count", "t"), [(5, 1.761), (10, 1.729), (20, 1.699)])
def test_the_bound_is_coxs_bound_on_the_mean(count: int, t: float) -> None:
    draw = random.Random(count)
    values = [math.exp(draw.gauss(-5, 1)) for _ in range(count)]
    made = auto()
    audited(made, CHEAP, *values)
    logs = [math.log(max(value, 0.001)) for value in values]
    freedom = KNOWN + count - 1
    mean = statistics.fmean(logs)
    variance = (KNOWN * VARIANCE + (count - 1) * statistics.variance(logs)) / freedom
    error = math.sqrt(variance / count + variance**2 / (2 * freedom))
    expected = math.exp(mean + variance / 2 + t * error)
    assert bound(made, message(known())) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("spread", "least"), [(1.0, 0.88), (1.3, 0.8)])
def test_the_bound_covers_the_mean_of_skewed_divergences(spread: float, least: float) -> None:
    """Most of the values lie far below their mean; `spread` is that of their logarithms."""
    draw, covered = random.Random(1), 0
    true = math.exp(-5 + spread**2 / 2)
    for _ in range(400):
        made = auto()
        audited(made, CHEAP, *(math.exp(draw.gauss(-5, spread)) for _ in range(8)))
        covered += bound(made, message(known())) >= true
    assert covered >= least * 400


def test_tiny_divergences_do_not_make_the_others_look_worse() -> None:
    tiny, none = auto(), auto()
    audited(tiny, CHEAP, 0.004, 0.006, 0.003, 0.009, 0.02 / 20)
    audited(none, CHEAP, 0.004, 0.006, 0.003, 0.009, 1e-12)
    assert bound(tiny, message(known())) == bound(none, message(known())) < 0.02


@given(st.lists(st.floats(0, 1), min_size=ENOUGH, max_size=WINDOW))
def test_the_bound_is_never_below_the_mean(values: list[float]) -> None:
    made = auto()
    audited(made, CHEAP, *values)
    assert bound(made, message(known())) >= statistics.fmean(values)


def test_audits_are_out_of_date_when_twice_as_much_was_learned() -> None:
    made = auto()
    audited(made, CHEAP, 0.5, samples=10)
    assert bound(made, message(known(21))) > 0.5
    # They count until a few new ones are there: old ones err on the safe side.
    audited(made, CHEAP, 0.01, samples=21, count=ENOUGH - 1)
    assert bound(made, message(known(21))) > 0.2
    audited(made, CHEAP, 0.01, samples=21, count=1)
    assert bound(made, message(known(21))) < 0.05


# --- audits ---


def test_known_levels_are_audited_at_the_rate() -> None:
    made = auto(rate=0.25)
    audited(made, CHEAP, 0.001)
    choices = [made.choose("t", [message(known())], seed=seed) for seed in range(400)]
    share = sum(bool(choice.measured) for choice in choices) / 400
    assert 0.18 < share < 0.32
    again = [made.choose("t", [message(known())], seed=seed) for seed in range(400)]
    assert [c.measured for c in choices] == [c.measured for c in again]


def test_what_was_given_up_is_probed_again_at_the_rate() -> None:
    made = auto(rate=0.25)
    for name in ("10%", "20%", "50%"):
        audited(made, name, 0.5, key=BORROWED)
    choices = [made.choose("t", [passage()], seed=seed) for seed in range(400)]
    share = sum(bool(choice.measured) for choice in choices) / 400
    assert 0.18 < share < 0.32


def test_a_target_of_zero_is_exact_and_measures_nothing() -> None:
    made = auto(target=0)
    audited(made, CHEAP, 0.0)
    choice = made.choose("t", [message(known())])
    assert isinstance(choice.policy, Exact)
    assert not choice.measured


@given(
    st.floats(0.001, 1),
    st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0, 2)), max_size=40),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_what_is_used_has_a_bound_within_the_target(
    target: float, audits: list[tuple[str, float]], error: float, seed: int
) -> None:
    made = auto(target=target, rate=0.5, prior=0.05)
    for level, divergence in audits:
        audited(made, level, divergence, count=1)
    choice = made.choose("t", [message(known(error=error))], seed=seed)
    if choice.used:
        assert choice.bounds[level_of(choice)] <= target
        cheaper = list(choice.bounds)[: list(choice.bounds).index(level_of(choice))]
        assert all(choice.bounds[name] > target for name in cheaper)


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
