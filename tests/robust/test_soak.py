"""The soak, for a short time: see `soak.py`."""

import pytest

from tests.robust.soak import soak


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(20, marks=pytest.mark.timeout(90)),
        pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_nothing_is_lost_and_exact_answers_are_right(seconds: int) -> None:
    found = soak(seconds)
    print("\n".join(found.lines()))
    assert found.problems == []
    assert found.ended["answered"] > seconds / 4
    assert found.ended["lost"] == 0
    assert len(found.faults) >= 5
    if seconds > 60:
        assert found.growth() < 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_2000_requests() -> None:
    found = soak(requests=2000, faults=False)
    print("\n".join(found.lines()))
    assert found.problems == []
    assert found.ended == {"answered": found.started}
    assert found.growth() < 0.02
