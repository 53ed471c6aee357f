"""Drawing tokens: greedy, temperature, top-p, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm.engine.local.sampler import Sampler
from kvcomm.errors import KvcommError
from kvcomm.sampling import Sampling, call_seed

NAN, INF = math.nan, math.inf
# Probabilities 0.4, 0.3, 0.2, 0.1 at temperature 1, out of order.
FOUR = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


def draws(logits: torch.Tensor, count: int, seed: int = 0, **settings: float) -> list[int]:
    sampler = Sampler(Sampling(**settings), seed)
    return [sampler.draw(logits) for _ in range(count)]


def shares(tokens: list[int], size: int) -> list[float]:
    return [tokens.count(token) / len(tokens) for token in range(size)]


def nucleus(probabilities: list[float], top_p: float) -> list[float]:
    """The fewest most probable tokens that sum to at least `top_p`, renormalised."""
    left, mass = [0.0] * len(probabilities), 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if mass >= top_p:
            break
        left[token] = probabilities[token]
        mass += probabilities[token]
    return [p / mass for p in left]


def test_greedy_takes_the_largest() -> None:
    assert draws(FOUR, 5) == [1] * 5
    assert draws(torch.tensor([-INF, -3.0, INF]), 1) == [2]
    assert draws(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 1) == [1]


@pytest.mark.parametrize("top_p", [0.05, 0.39, 0.41, 0.69, 0.71, 0.95, 1.0])
def test_top_p_draws_from_the_nucleus(top_p: float) -> None:
    tokens = draws(FOUR, 3000, temperature=1.0, top_p=top_p)
    expected = nucleus([0.1, 0.4, 0.2, 0.3], top_p)
    for share, probability in zip(shares(tokens, 4), expected, strict=True):
        # Four standard deviations; tokens outside the nucleus never.
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 3000)


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 5.0),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=150, deadline=None)
def test_no_token_outside_the_nucleus(
    logits: list[float], top_p: float, temperature: float, seed: int
) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p), seed)
    token = sampler.draw(torch.tensor(logits))
    scaled = torch.softmax(torch.tensor(logits).double() / temperature, dim=-1)
    before = float(scaled[scaled > scaled[token] * (1 + 1e-5)].sum())
    assert before < top_p + 1e-5


def test_temperature_flattens() -> None:
    tokens = draws(FOUR, 4000, temperature=2.0)
    roots = [math.sqrt(p) for p in (0.1, 0.4, 0.2, 0.3)]
    for share, root in zip(shares(tokens, 4), roots, strict=True):
        assert abs(share - root / sum(roots)) < 0.035


def test_a_draw_depends_on_nothing_beside_it() -> None:
    logits = torch.zeros(1000)
    torch.manual_seed(1)
    alone = draws(logits, 5, temperature=1.0)
    sampler, neighbour = (Sampler(Sampling(temperature=1.0), seed) for seed in (0, 9))
    beside = []
    for _ in range(5):
        torch.rand(3)
        neighbour.draw(logits)
        beside.append(sampler.draw(logits))
    assert beside == alone


def test_drawing_changes_no_logits() -> None:
    logits = FOUR.clone()
    draws(logits, 3, temperature=0.7, top_p=0.5)
    assert torch.equal(logits, FOUR)


@pytest.mark.parametrize("logits", [[NAN, 1.0], [1.0, NAN], [NAN, INF]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(logits: list[float], temperature: float) -> None:
    with pytest.raises(KvcommError, match="NaN"):
        draws(torch.tensor(logits), 1, temperature=temperature)


@pytest.mark.parametrize("logits", [[INF, 1.0], [-INF, -INF]])
def test_logits_without_a_distribution_are_an_error(logits: list[float]) -> None:
    with pytest.raises(KvcommError, match="infinite logits"):
        draws(torch.tensor(logits), 1, temperature=1.0)


def test_forbidden_tokens_are_never_drawn() -> None:
    assert set(draws(torch.tensor([-INF, 0.0, -INF, 0.0]), 100, temperature=1.0)) == {1, 3}


def test_each_call_has_its_own_seed() -> None:
    calls = [
        (0, "s", "n", 0),
        (1, "s", "n", 0),
        (0, "t", "n", 0),
        (0, "s", "m", 0),
        (0, "s", "n", 1),
        (0, "sn", "", 0),
    ]
    seeds = [call_seed(*call) for call in calls]
    assert len(set(seeds)) == len(calls)
    assert seeds == [call_seed(*call) for call in calls]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert call_seed(0, "s", "n", 0) == 1_982_912_149_521_703_525, "seeds outlive a process"
