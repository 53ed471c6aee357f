"""Policies: numbers in, steps and reasons out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Predictability, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import MODES, Anchors, Dense, Exact, Kvcomm, ReuseOptions, policy_for

YES = Predictability(True, "shared: entropy 0.010", 4)
NO = Predictability(False, "no anchor stands out: entropy 1.300", 4)


def literal(tokens: int = 3, covered: int | None = None, *, last: bool = False) -> SegmentFacts:
    held = tokens if covered is None else covered
    return SegmentFacts("literal", "literal", tokens, tuple(range(held)), last=last)


def message(
    tokens: int = 5,
    covered: int = 4,
    verdict: Predictability | None = YES,
    name: str = "solver",
    *,
    last: bool = False,
) -> SegmentFacts:
    held = tuple(range(covered))
    return SegmentFacts("placeholder", name, tokens, held, verdict if held else None, last=last)


# --- all policies ---


def test_policies_need_no_torch() -> None:
    code = "import sys, kvcomm.reuse.policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'fast' is unknown: choose one of auto, exact, kvcomm, d"):
        policy_for("fast")


def test_auto_says_that_it_is_exact() -> None:
    assert policy_for("auto").plan([literal()]).decision.startswith("auto: exact")


@st.composite
def prompts(draw: st.DrawFn) -> list[SegmentFacts]:
    """Facts as a survey makes them: alternating, some without base KV, some empty."""
    facts: list[SegmentFacts] = []
    for index in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["literal", "placeholder"]))
        if kind == "literal" and facts and facts[-1].kind == "literal":
            kind = "placeholder"
        tokens = draw(st.integers(kind == "literal", 6))
        covered = tuple(
            sorted(draw(st.sets(st.integers(0, tokens - 1)) if tokens else st.just(())))
        )
        verdict = None
        if kind == "placeholder" and covered:
            verdict = draw(st.sampled_from([YES, YES, YES, NO]))
        facts.append(SegmentFacts(kind, f"s{index}", tokens, covered, verdict))
    last = facts[-1]
    facts[-1] = replace(last, last=True)
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
        assert step.positions is not None
        assert list(step.positions) == sorted(set(step.positions))
        assert all(0 <= position < fact.tokens for position in step.positions)
        assert set(range(fact.tokens)) <= {*step.positions, *fact.covered}
    last, step = facts[-1], plan.segments[-1]
    if last.tokens and step.positions is not None:
        assert last.tokens - 1 in step.positions
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


def test_dense_computes_everything_when_the_last_input_is_there() -> None:
    plan = Dense().plan([literal(), message(), literal(last=True)])
    assert plan.segments == (SegmentPlan("compute", "dense mode"),) * 3
    assert plan.dense
    assert Dense().options == ReuseOptions()


def test_exact_computes_what_no_prefix_holds() -> None:
    plan = Exact().plan([literal(), message()])
    assert [(step.source, step.positions) for step in plan.segments] == [("compute", None)] * 2
    assert (plan.dense, plan.learn) == (False, ())
    options = Exact().options
    assert (options.ahead, options.reads_prefix, options.feeds_prefix) == (True, True, True)
    assert not options.realigns


# --- kvcomm ---


def test_a_call_that_passes_computes_only_what_has_no_kv_and_the_last_token() -> None:
    facts = [literal(), message(5, 4), literal(2), message(3, 3, name="critic"), literal(last=True)]
    plan = Kvcomm().plan(facts)
    assert (plan.decision, plan.dense, plan.learn) == ("realigned", False, ())
    assert plan.segments == (
        SegmentPlan("compute", "first literal is exact"),
        SegmentPlan("realign", YES.reason, (4,)),
        SegmentPlan("realign", "offset of the placeholder before", ()),
        SegmentPlan("realign", YES.reason, ()),
        SegmentPlan("realign", "offset of the placeholder before", (2,)),
    )


def test_one_placeholder_that_fails_makes_the_call_dense_and_is_learned() -> None:
    facts = [literal(), message(), message(verdict=NO, name="critic"), literal(last=True)]
    plan = Kvcomm().plan(facts)
    assert plan.decision == f"dense: {{critic}}: {NO.reason}"
    assert {step.reason for step in plan.segments} == {f"dense, because {{critic}}: {NO.reason}"}
    assert plan.dense
    assert plan.learn == (2,)


def test_every_failure_is_named() -> None:
    facts = [message(covered=0, name="task"), message(verdict=NO), literal(last=True)]
    plan = Kvcomm().plan(facts)
    assert plan.decision == f"dense: {{task}}: no base KV; {{solver}}: {NO.reason}"
    assert plan.learn == (1,), "what has no base KV cannot be learned"


def test_a_prompt_without_placeholders_is_computed() -> None:
    plan = Kvcomm().plan([literal(last=True)])
    assert plan.segments == (SegmentPlan("compute", "nothing to realign"),)
    assert plan.dense


def test_without_its_gate_two_anchors_are_enough() -> None:
    refused = Predictability(False, "no anchor stands out: entropy 1.300", 2)
    few = Predictability(False, "1 anchor of at least 5 tokens, needs 2", 1)
    policy = Kvcomm(gated=False)
    assert not policy.plan([literal(), message(verdict=refused), literal(last=True)]).dense
    assert policy.plan([literal(), message(verdict=few), literal(last=True)]).dense
    assert Kvcomm().plan([literal(), message(verdict=refused), literal(last=True)]).dense


def test_an_empty_message_neither_fails_nor_is_realigned() -> None:
    facts = [literal(), message(0, 0), literal(2), message(), literal(last=True)]
    steps = Kvcomm().plan(facts).segments
    assert steps[1] == SegmentPlan("compute", "empty")
    assert steps[2] == SegmentPlan("compute", "no offset behind an empty placeholder")
    assert [step.source for step in steps[3:]] == ["realign", "realign"]


def test_a_literal_that_left_the_store_is_computed() -> None:
    steps = Kvcomm().plan([literal(), message(), literal(2, covered=0, last=True)]).segments
    assert steps[2] == SegmentPlan("compute", "no base KV")


# --- the paper's numbers ---


def test_the_papers_numbers_are_part_of_the_family() -> None:
    assert Kvcomm().options == Kvcomm(anchors=Anchors(0.3, 20)).options
    assert Kvcomm().options.offsets == "anchors"
    assert Kvcomm(anchors=Anchors(0.1, 40)).options.offsets == "anchors:gamma=0.1,capacity=40"


@pytest.mark.parametrize("numbers", [{"gamma": -0.1}, {"gamma": float("nan")}, {"capacity": 1}])
def test_numbers_the_paper_has_no_use_for(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Anchors(**numbers)  # type: ignore[arg-type]
