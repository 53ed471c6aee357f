"""Recipes: which positions of a prompt are computed, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.reuse.plan import Predictability, SegmentFacts
from kvcomm.reuse.recipe import LINEAR, METHODS, WORTH, Realign, Recipe

YES = Predictability(True, "linear offsets: 9 samples", 9, 0.4)
NO = Predictability(False, "too little learned: 1 samples", 1)


def text(
    tokens: int = 60,
    covered: int | None = None,
    verdict: Predictability | None = YES,
    *,
    prefix: int = 0,
    last: bool = False,
) -> SegmentFacts:
    held = tuple(range(tokens if covered is None else covered))
    return SegmentFacts(
        "placeholder", "solver", tokens, held, verdict if held else None, prefix, last
    )


def literal(
    tokens: int = 5, *, base: bool = False, prefix: int = 0, last: bool = False
) -> SegmentFacts:
    held = tuple(range(tokens)) if base else ()
    return SegmentFacts("literal", "literal 0", tokens, held, None, prefix, last)


def plan(recipe: Recipe, *facts: SegmentFacts, budget: float = 1.0) -> list[tuple[str, str]]:
    return [
        (step.source, step.reason) for step in Realign(recipe, budget=budget).plan(facts).segments
    ]


def test_first_and_deviating_tokens_are_computed() -> None:
    recipe = Recipe("r", offsets="linear", first=4, deviating=0.1)
    made = Realign(recipe).plan([literal(), text(60), literal(last=True)])
    assert [step.source for step in made.segments] == ["compute", "realign", "compute"]
    step = made.segments[1]
    assert step.positions == (0, 1, 2, 3)
    assert step.deviating == 6
    assert step.corrected
    assert step.reason == "linear offsets: 9 samples; computed: first 4, 6 deviating"
    assert not made.dense


def test_the_leading_share_bounds_the_first_tokens() -> None:
    recipe = Recipe("r", first=16, leading=0.1)
    assert Realign(recipe).plan([literal(), text(60)]).segments[1].positions == tuple(range(6))
    assert Realign(recipe).plan([literal(), text(600)]).segments[1].positions == tuple(range(16))


def test_short_placeholders_are_computed() -> None:
    recipe = Recipe("r", short=20)
    assert plan(recipe, literal(), text(20))[1] == ("compute", "short: at most 20 tokens")
    assert plan(recipe, literal(), text(21))[1][0] == "realign"


def test_what_is_not_covered_is_computed_and_the_rest_reused() -> None:
    step = Realign(Recipe("r")).plan([literal(), text(10, covered=7)]).segments[1]
    assert step.source == "realign"
    assert step.positions == (7, 8, 9)


def test_a_placeholder_without_base_is_computed() -> None:
    assert plan(LINEAR, literal(), text(covered=0))[1] == ("compute", "no base KV")


def test_a_prefix_hit_comes_first() -> None:
    facts = literal(5, prefix=5), text(60, prefix=60), text(60, prefix=3)
    assert [way for way, _ in plan(LINEAR, *facts)] == ["compute", "compute", "realign"]
    assert plan(LINEAR, *facts)[1][1] == "in the prefix cache"


def test_little_to_save_is_not_saved() -> None:
    recipe = Recipe("r", first=16)
    assert plan(recipe, literal(), text(20))[1] == (
        "compute",
        "16 of 20 tokens would be computed anyway",
    )


def test_a_gated_recipe_computes_what_cannot_be_predicted() -> None:
    made = Realign(LINEAR).plan([literal(), text(verdict=NO)])
    assert made.dense
    assert made.segments[1].reason == NO.reason
    assert NO.reason in made.decision


def test_an_ungated_recipe_only_rotates_it() -> None:
    recipe = METHODS["anchors"]
    step = Realign(recipe).plan([literal(), text(verdict=NO), literal(base=True)]).segments[1]
    assert step.source == "realign"
    assert not step.corrected
    assert step.reason.startswith("rotated only")


def test_the_gate_of_anchors_is_off() -> None:
    refused = Predictability(False, "no anchor stands out: entropy 1.0", 4)
    step = Realign(METHODS["anchors"]).plan([literal(), text(verdict=refused)]).segments[1]
    assert step.corrected


def test_moved_literals_take_the_offset_of_the_placeholder_before() -> None:
    facts = literal(base=True), text(), literal(base=True, last=True)
    steps = Realign(METHODS["anchors"]).plan(facts).segments
    assert steps[0].source == "compute"
    assert steps[2].source == "realign"
    assert steps[2].positions == (4,)
    assert steps[2].corrected
    rotated = Realign(METHODS["rotate"]).plan(facts).segments
    assert not rotated[2].corrected


def test_measured_deviations_say_which_tokens_are_computed() -> None:
    sizes = tuple(float(position * 37 % 90) for position in range(90))
    fact = replace(text(100, covered=90), deviations=sizes)
    step = Realign(METHODS["cacheblend"]).plan([literal(), fact, literal()]).segments[1]
    largest = sorted(range(90), key=lambda position: -sizes[position])[:15]
    assert step.positions == tuple(sorted([*largest, *range(90, 100)]))
    assert step.deviating == 0
    assert step.reason.endswith("computed: 15 deviating")
    unknown = Realign(METHODS["cacheblend"]).plan([literal(), text(100), literal()]).segments[1]
    assert unknown.positions == tuple(range(15))


def test_a_budget_trims_the_repair() -> None:
    recipe = Recipe("r", first=16, deviating=0.2)
    tight = Realign(recipe, budget=0.1).plan([literal(), text(100)]).segments[1]
    assert len(tight.positions or ()) + tight.deviating == 10
    free = Realign(recipe, budget=0.5).plan([literal(), text(100)]).segments[1]
    assert len(free.positions or ()) + free.deviating == 36


@given(
    st.builds(
        Recipe,
        name=st.just("r"),
        offsets=st.sampled_from(["", "linear"]),
        literals=st.sampled_from(["compute", "move"]),
        short=st.integers(0, 20),
        first=st.integers(0, 40),
        leading=st.floats(0, 1),
        deviating=st.floats(0, 1),
        unknown=st.sampled_from(["compute", "rotate", "predict"]),
    ),
    st.integers(0, 100),
    st.integers(0, 100),
    st.floats(0, 1),
    st.booleans(),
)
def test_a_realigned_step_stays_in_range_and_saves_something(
    recipe: Recipe, tokens: int, covered: int, share: float, last: bool
) -> None:
    fact = text(tokens, min(covered, tokens), last=last)
    step = Realign(recipe, budget=share).plan([literal(), fact]).segments[1]
    if step.source == "realign":
        positions = step.positions or ()
        assert all(0 <= p < tokens for p in positions)
        assert set(range(tokens)) - set(fact.covered) <= set(positions)
        assert len(positions) + step.deviating < WORTH * tokens
        assert not last or tokens - 1 in positions


@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_of_literals_is_computed(name: str) -> None:
    made = Realign(METHODS[name]).plan([literal(last=True)])
    assert made.dense
    assert "nothing to realign" in made.decision


@given(st.integers(0, 400), st.integers(0, 400), st.booleans(), st.booleans())
def test_what_leads_a_message_is_computed_in_the_end(
    some: int, more: int, known: bool, budget: bool
) -> None:
    recipe = Recipe("r", offsets="linear" * known, short=20, first=90, leading=0.2, deviating=0.1)
    policy = Realign(recipe, budget=0.25 if budget else 1.0)
    whole = some + more
    lead = policy.leading(some, 1000)
    assert lead <= some
    verdict = Predictability(True, "known", 10, 0.5)
    fact = SegmentFacts("placeholder", "a", whole, tuple(range(whole)), verdict, done=lead)
    step = policy.plan([fact]).segments[0]
    assert step.positions is None or set(range(lead)) <= set(step.positions)
    # What is computed ahead is no more than is computed anyway.
    late = policy.plan([replace(fact, done=0)]).segments[0]
    assert late == step


def test_a_message_that_stays_short_is_computed_as_it_is_written() -> None:
    policy = Realign(Recipe("r", short=100, first=8))
    assert policy.leading(60, 100) == 60
    assert policy.leading(60, 101) == 8
