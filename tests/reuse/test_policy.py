"""Policies: numbers in, steps and reasons out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Predictability, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import MODES, Anchors, Dense, Exact, Kvcomm, ReuseOptions, policy_for
from tests.support import python

YES = Predictability(True, "shared: entropy 0.010", 4)
NO = Predictability(False, "no anchor stands out: entropy 1.300", 4)


def literal(tokens: int = 3, *, kept: bool = True, last: bool = False) -> SegmentFacts:
    held = tuple(range(tokens if kept else 0))
    return SegmentFacts("literal", "literal", tokens, held, last=last)


def message(
    tokens: int = 5,
    covered: int = 4,
    verdict: Predictability | None = YES,
    name: str = "solver",
) -> SegmentFacts:
    held = tuple(range(covered))
    return SegmentFacts("placeholder", name, tokens, held, verdict if held else None)


END = literal(last=True)


# --- all policies ---


def test_policies_need_no_torch() -> None:
    done = python("import sys, kvcomm.reuse.policy; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0


@st.composite
def prompts(draw: st.DrawFn) -> list[SegmentFacts]:
    """Facts as a survey makes them: alternating, some without base KV, some empty."""
    facts: list[SegmentFacts] = []
    for index in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["literal", "placeholder"]))
        if kind == "literal" and facts and facts[-1].kind == "literal":
            kind = "placeholder"
        tokens = draw(st.integers(kind == "literal", 6))
        slots = st.sets(st.integers(0, tokens - 1)) if tokens else st.just(set())
        covered, verdict = tuple(sorted(draw(slots))), None
        if kind == "placeholder" and covered:
            verdict = draw(st.sampled_from([YES, YES, YES, NO]))
        facts.append(SegmentFacts(kind, f"s{index}", tokens, covered, verdict))
    facts[-1] = replace(facts[-1], last=True)
    return facts


@pytest.mark.parametrize("mode", MODES)
@given(facts=prompts())
def test_a_plan_covers_every_segment_within_range(mode: str, facts: list[SegmentFacts]) -> None:
    plan = policy_for(mode).plan(facts)
    assert len(plan.segments) == len(facts)
    assert plan.decision
    for fact, step in zip(facts, plan.segments, strict=True):
        assert step.source in ("compute", "realign")
        assert step.reason
        if step.source == "compute":
            assert step.positions is None
            continue
        assert list(step.positions) == sorted(set(step.positions))
        assert all(0 <= position < fact.tokens for position in step.positions)
        assert set(range(fact.tokens)) <= {*step.positions, *fact.covered}
    if facts[-1].tokens and step.positions is not None:
        assert facts[-1].tokens - 1 in step.positions
    assert plan.learn == tuple(sorted(set(plan.learn)))
    assert all(facts[index].kind == "placeholder" and facts[index].covered for index in plan.learn)


@given(prompts())
def test_kvcomm_realigns_every_placeholder_or_nothing(facts: list[SegmentFacts]) -> None:
    plan = Kvcomm().plan(facts)
    held = [f for f in facts if f.kind == "placeholder" and f.tokens]
    passed = all(f.offset is not None and f.offset.shareable for f in held)
    ways = [step.source for step, f in zip(plan.segments, facts, strict=True) if f in held]
    assert plan.dense == (not passed or not any(f.kind == "placeholder" for f in facts))
    assert ways == ["compute" if plan.dense else "realign"] * len(held)
    if plan.dense:
        assert all(step.source == "compute" for step in plan.segments)
    else:
        assert plan.learn == ()


# --- dense and exact ---


def test_dense_and_exact_compute_what_no_prefix_holds() -> None:
    facts = [literal(), message(), END]
    dense, exact = Dense(), Exact()
    assert dense.plan(facts).segments == (SegmentPlan("compute", "dense mode"),) * 3
    assert [step.source for step in exact.plan(facts).segments] == ["compute"] * 3
    assert (dense.plan(facts).dense, exact.plan(facts).dense) == (True, False)
    options = {"publishes": True, "reads_prefix": True, "feeds_prefix": True}
    assert (dense.options, exact.options) == (ReuseOptions(), ReuseOptions(ahead=True, **options))


# --- kvcomm ---


FIRST = "compute: first literal is exact"
MOVED = f"realign: {YES.reason}, but "
BEHIND = "realign: offset of the placeholder before, but "
PLANS = {
    "all passes": (
        [literal(), message(), literal(2), message(3, 3, name="critic"), END],
        [FIRST, MOVED + "4", BEHIND, MOVED, BEHIND + "2"],
    ),
    "an empty message": (
        [literal(), message(0, 0), literal(2), message()],
        [FIRST, "compute: empty", "compute: no offset behind an empty placeholder", MOVED + "4"],
    ),
    "a literal that left the store": (
        [literal(), message(), literal(2, kept=False)],
        [FIRST, MOVED + "4", "compute: no base KV"],
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_call_that_passes_computes_what_has_no_kv_and_the_last_token(case: str) -> None:
    facts, steps = PLANS[case]
    plan = Kvcomm().plan(facts)
    assert (plan.decision, plan.dense, plan.learn) == ("realigned", False, ())
    for step, expected in zip(plan.segments, steps, strict=True):
        computed = "" if step.positions is None else f", but {','.join(map(str, step.positions))}"
        assert f"{step.source}: {step.reason}{computed}" == expected


def test_every_placeholder_that_fails_is_named_and_learned_if_it_can_be() -> None:
    facts = [message(covered=0, name="task"), message(verdict=NO), message(name="critic"), END]
    plan = Kvcomm().plan(facts)
    why = f"{{task}}: no base KV; {{solver}}: {NO.reason}"
    assert (plan.decision, plan.dense, plan.learn) == (f"dense: {why}", True, (1,))
    assert {step.reason for step in plan.segments} == {f"dense, because {why}"}
    alone = Kvcomm().plan([END])
    assert (alone.segments, alone.dense) == ((SegmentPlan("compute", "nothing to realign"),), True)


def test_without_its_gate_two_anchors_are_enough() -> None:
    few = Predictability(False, "1 anchor of at least 5 tokens, needs 2", 1)
    for verdict, gated, dense in ((NO, True, True), (NO, False, False), (few, False, True)):
        facts = [literal(), message(verdict=verdict), END]
        assert Kvcomm(gated=gated).plan(facts).dense == dense


# --- the paper's numbers ---


def test_the_papers_numbers_are_part_of_the_family() -> None:
    assert Kvcomm().options == Kvcomm(anchors=Anchors(0.3, 20)).options
    assert Kvcomm(anchors=Anchors(0.1, 40)).options.offsets == "anchors:gamma=0.1,capacity=40"


@pytest.mark.parametrize("numbers", [{"gamma": -0.1}, {"gamma": float("nan")}, {"capacity": 1}])
def test_numbers_the_paper_has_no_use_for(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Anchors(**numbers)
