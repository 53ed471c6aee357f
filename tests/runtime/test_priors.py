"""Measuring once how well a model can reuse KV; and doing without until then."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.graphs import chain
from kvcomm.reuse.auto import LEVELS
from kvcomm.runtime import priors as module
from kvcomm.runtime.priors import SHIPPED, key_of, known, measure, measured

from .support import TASK, agent, check_at_rest, session

EVERY = {f"{kind} {level.name}" for kind in ("message", "borrowed") for level in LEVELS}
PAIR = chain(agent("a", 4), agent("b", 4))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and an engine that nobody has measured yet."""
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    module._measured.clear()
    return tmp_path / "priors"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were measured."""
    found: list[str] = []

    async def counting(engine: Any, levels: Any) -> dict[str, float]:
        found.append(engine.model)
        await asyncio.sleep(0)
        return await measured(engine, levels)

    monkeypatch.setattr(module, "measured", counting)
    return found


async def test_priors_are_measured_once_and_kept(
    tiny: LocalEngine, cache: Path, counted: list[str]
) -> None:
    assert known(tiny, LEVELS) is None
    first = await measure(tiny, LEVELS)
    assert set(first) == EVERY
    assert all(value > 0 for value in first.values())
    assert len(list(cache.iterdir())) == 1
    assert await measure(tiny, LEVELS) == first
    module._measured.clear()  # as another process does
    assert known(tiny, LEVELS) == await measure(tiny, LEVELS) == first
    assert len(counted) == 1
    other = [replace(LEVELS[0], first=1)]
    assert known(tiny, other) is None  # other levels: other priors


async def test_those_who_ask_at_once_wait_for_one_measurement(
    tiny: LocalEngine, cache: Path, counted: list[str]
) -> None:
    found = await asyncio.gather(*(measure(tiny, LEVELS) for _ in range(3)))
    assert found[0] == found[1] == found[2]
    assert len(counted) == 1


async def test_a_measurement_that_is_cancelled_is_begun_by_the_next(
    tiny: LocalEngine, cache: Path, counted: list[str]
) -> None:
    first = asyncio.create_task(measure(tiny, LEVELS))
    second = asyncio.create_task(measure(tiny, LEVELS))
    while not counted:
        await asyncio.sleep(0)
    first.cancel()
    assert set(await second) == EVERY
    assert first.cancelled()
    assert len(counted) == 2
    check_at_rest(tiny)


@pytest.mark.parametrize("text", ["{", "[]", '{"key": {}}', '{"key": 1, "models": 1}'])
async def test_damaged_priors_are_measured_again(tiny: LocalEngine, cache: Path, text: str) -> None:
    first = await measure(tiny, LEVELS)
    path = next(cache.iterdir())
    path.write_text(text)
    module._measured.clear()
    assert known(tiny, LEVELS) is None
    assert await measure(tiny, LEVELS) == pytest.approx(first)
    assert json.loads(path.read_text())["models"] == {tiny.weights: pytest.approx(first)}


def test_the_embedded_model_comes_with_priors_for_these_levels(
    smol: LocalEngine, cache: Path
) -> None:
    assert json.loads(SHIPPED.read_text(encoding="utf-8"))["key"] == key_of(LEVELS), (
        "levels or exchanges have changed: python benchmarks/priors.py"
    )
    found = known(smol, LEVELS)
    assert found is not None
    assert set(found) == EVERY
    assert found["message 10%"] > found["message 30%"] > found["message 50%"]
    for kind in ("message", "borrowed"):
        assert found[f"{kind} long 10%"] < found[f"{kind} 10%"] / 2


@pytest.mark.slow
async def test_the_priors_that_come_with_kvcomm_are_those_that_are_measured(
    smol: LocalEngine, cache: Path
) -> None:
    # Sums in another order, as on another processor, move them by far less than a percent.
    assert await measured(smol, LEVELS) == pytest.approx(known(smol, LEVELS), rel=0.02)


async def test_exchanges_beyond_the_context_give_no_priors(
    tiny: LocalEngine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "max_context", 600)
    assert await measure(tiny, LEVELS) == {}  # its tokens are characters


def test_a_new_model_is_exact_until_it_is_measured_behind_the_answers(
    tiny: LocalEngine, cache: Path, counted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with session(tiny, "auto") as active:
        active.run(chain(agent("a", 4)), TASK)
        assert not counted  # one agent has nothing to realign
        result = active.run(PAIR, TASK)
        assert "not measured yet" in result.warnings[0]
        assert "nothing is known of the model yet" in result.call("b").report.gate
        assert active._measuring is not None
        active._measuring.result()
        again = active.run(PAIR, TASK)
    assert again.warnings == ()
    assert "%" in again.call("b").report.gate
    assert counted == [tiny.model]
    notices = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert notices == [
        f"measuring how well {tiny.model} can reuse KV, once; until then `auto` is exact"
    ]


def test_warm_up_measures_at_once(tiny: LocalEngine, cache: Path, counted: list[str]) -> None:
    with session(tiny, "auto") as active:
        active.warm_up()
        assert counted == [tiny.model]
        assert active.run(PAIR, TASK).warnings == ()
    for mode in ("dense", "exact", "kvcomm"):
        with session(tiny, mode) as active:
            active.warm_up()
    assert len(counted) == 1


def test_a_measurement_that_fails_is_said_and_made_later(
    tiny: LocalEngine, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    real = tiny.evaluate
    with session(tiny, "auto") as active:
        monkeypatch.setattr(tiny, "evaluate", lambda *_, **__: 1 / 0)
        active.run(PAIR, TASK)
        active._measuring.result()  # type: ignore[union-attr]
        assert "could not be measured, and is again behind the next run" in caplog.text
        monkeypatch.setattr(tiny, "evaluate", real)
        active.run(PAIR, TASK)
        active._measuring.result()  # type: ignore[union-attr]
        assert active.run(PAIR, TASK).warnings == ()
