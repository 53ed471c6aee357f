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
    assert set(draws(torch.tensor([-INF, 0.0, -INF, 0.0]), 100, temperature=1.0)) == {1, 3}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.05, 0.39, 0.41, 0.69, 0.71, 0.95, 1.0])
def test_tokens_are_drawn_from_the_nucleus(top_p: float, temperature: float) -> None:
    logits = FOUR.clone()
    tokens = draws(logits, 3000, temperature=temperature, top_p=top_p)
    flat = [p ** (1 / temperature) for p in (0.1, 0.4, 0.2, 0.3)]
    for token, probability in enumerate(nucleus([p / sum(flat) for p in flat], top_p)):
        # Four standard deviations; tokens outside the nucleus never.
        share, spread = tokens.count(token) / 3000, probability * (1 - probability)
        assert abs(share - probability) <= 4 * math.sqrt(spread / 3000)
    assert torch.equal(logits, FOUR)


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


@pytest.mark.parametrize(
    ("logits", "temperature", "message"),
    [
        ([NAN, 1.0], 0.0, "NaN"),
        ([1.0, NAN], 1.0, "NaN"),
        ([NAN, INF], 1.0, "NaN"),
        ([INF, 1.0], 1.0, "infinite logits"),
        ([-INF, -INF], 1.0, "infinite logits"),
    ],
)
def test_logits_without_a_distribution_are_an_error(
    logits: list[float], temperature: float, message: str
) -> None:
    with pytest.raises(KvcommError, match=message):
        draws(torch.tensor(logits), 1, temperature=temperature)


def test_each_call_has_its_own_seed() -> None:
    calls = [(0, "s", "n", 0), (1, "s", "n", 0), (0, "t", "n", 0), (0, "s", "m", 0)]
    calls += [(0, "s", "n", 1), (0, "sn", "", 0)]
    seeds = [call_seed(*call) for call in calls]
    assert len(set(seeds)) == len(calls)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == 1_982_912_149_521_703_525, "seeds outlive a process"
