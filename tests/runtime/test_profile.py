"""Measuring a model and a device once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.auto import LEVELS, Auto
from kvcomm.runtime import profile as module
from kvcomm.runtime.profile import Profile, inform, profile


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    return tmp_path / "profiles"


async def test_a_profile_is_measured_once_and_kept(
    tiny: LocalEngine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await profile(tiny, LEVELS)
    assert set(first.priors) == {level.name for level in LEVELS}
    assert all(value > 0 for value in first.priors.values())
    assert 0 <= first.spare < first.breakeven
    assert len(list(cache.iterdir())) == 1

    async def never(*_: object) -> dict[str, float]:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(module, "_priors", never)
    assert await profile(tiny, LEVELS) == first
    with pytest.raises(AssertionError, match="second time"):
        await profile(tiny, [replace(LEVELS[0], first=1)])  # other levels: other priors


@pytest.mark.parametrize("text", ["{", "[]", '{"key": {}}', '{"key": 1, "spare": 1}'])
async def test_a_damaged_profile_is_measured_again(
    tiny: LocalEngine, cache: Path, text: str
) -> None:
    first = await profile(tiny, LEVELS)
    path = next(cache.iterdir())
    path.write_text(text)
    again = await profile(tiny, LEVELS)
    assert again.priors == pytest.approx(first.priors)
    assert json.loads(path.read_text())["priors"] == again.priors


async def test_more_repair_has_a_smaller_prior_on_a_trained_model(smol: LocalEngine) -> None:
    found = (await profile(smol, LEVELS)).priors
    assert found["light"] > found["medium"] > found["heavy"]
    for name in ("medium", "heavy"):
        assert found[f"long-{name}"] < found[name] / 2


async def test_exchanges_beyond_the_context_give_no_priors(
    tiny: LocalEngine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "max_context", 600)
    assert not (await profile(tiny, LEVELS)).priors  # its tokens are characters


async def test_measuring_a_profile_is_said(
    tiny: LocalEngine, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "kvcomm"):
        await profile(tiny, LEVELS)
        await profile(tiny, LEVELS)
    assert [r.getMessage() for r in caplog.records] == [
        f"measuring how well {tiny.model} can reuse KV on this device, once"
    ]


async def test_a_controller_is_informed_once(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(*_: object) -> Profile:
        return Profile(3, 7, {"light": 0.5})

    monkeypatch.setattr(module, "profile", measured)
    auto = Auto()
    await inform(auto, tiny)
    assert (auto.spare, auto.budget.tokens, auto.priors) == (3, 7, {"light": 0.5})
    fixed = Auto()
    await inform(fixed, tiny, budget=False)
    assert fixed.budget.tokens == 0
    off = Auto(target=0)
    await inform(off, tiny)
    assert not off.priors
