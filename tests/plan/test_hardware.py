"""Descriptions of hardware: curves, files, calculated GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.errors import UsageError
from kvcomm.plan.gpus import GPUS, hardware_named, parameters_of
from kvcomm.plan.hardware import Hardware, along, read_hardware
from tests.plan.works import SIMPLE

POINTS = st.dictionaries(st.integers(1, 4096), st.floats(1e-4, 10), min_size=1, max_size=6)


@given(POINTS, st.integers(1, 9000), st.integers(1, 9000))
def test_more_tokens_never_take_less(points: dict[int, float], one: int, other: int) -> None:
    fields = SIMPLE.model_dump() | {"prefill": list(points.items())}
    curve = Hardware.model_validate(fields).prefill
    few, many = sorted((one, other))
    assert along(curve, few) <= along(curve, many) + 1e-9


def test_curves_are_straight_between_and_beyond_their_points() -> None:
    curve = ((1, 1.0), (3, 2.0), (5, 6.0))
    assert [along(curve, at) for at in (1, 2, 3, 4, 5, 7)] == [1.0, 1.5, 2.0, 4.0, 6.0, 10.0]
    assert along(((1, 2.0),), 50) == 2.0


def test_a_chunk_beside_decoding_rows_costs_what_it_adds() -> None:
    described = SIMPLE.model_copy(update={"attend_s": 0.01, "read_s": 0.05})
    assert described.forward_s([1000.0, 3000.0]) == pytest.approx(0.1 + 4 * 0.05)
    assert described.forward_s([], [(2000.0, 10)]) == pytest.approx(0.010 + 10 * 2 * 0.01)
    assert described.forward_s([0.0], [(0.0, 10)]) == pytest.approx(0.1 + 0.010)


def test_a_file_says_what_was_written(tmp_path: Path) -> None:
    described = SIMPLE.model_copy(update={"name": 'a "quoted" name', "realign_s": 2.5e-6})
    path = tmp_path / "hw.toml"
    path.write_text(described.to_toml(), encoding="utf-8")
    assert hardware_named(str(path), "any") == described
    other = tmp_path / "hw.json"
    other.write_text(json.dumps(described.model_dump(mode="json")), encoding="utf-8")
    assert hardware_named(str(other), "any", kv_bytes=7).kv_bytes == 7


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "hw.toml"
    with pytest.raises(UsageError, match=r"no hardware .*h100, a100"):
        hardware_named(str(path), "any")
    path.write_text("prefill = nonsense")
    with pytest.raises(UsageError, match="no hardware file"):
        read_hardware(path)
    fields = {'name = "x"': "memory", 'name = "x"\nmemory = -1': "memory"}
    for text, name in fields.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=f"`{name}`"):
            hardware_named(str(path), "any")
    path.write_text(SIMPLE.to_toml() + "speed = 3\n")
    with pytest.raises(UsageError, match="`speed`"):
        hardware_named(str(path), "any")
    path.write_text(SIMPLE.to_toml().replace("[[1, 0.1]]", "[]"))
    with pytest.raises(UsageError, match=r"`decode`.*such as"):
        hardware_named(str(path), "any")


def test_a_gpu_is_calculated_from_its_peaks() -> None:
    found = hardware_named("h100", "meta-llama/Llama-3.1-8B-Instruct", kv_bytes=131072)
    assert found.source == "calculated"
    assert found.weights == 16e9
    assert found.kv_memory == 32e9
    # 16 GB of weights at half of 3.35 TB/s.
    assert found.forward_s([0.0]) == pytest.approx(16e9 / 1.675e12)
    # 2,048 tokens of 16e9 operations at half of 989 TFLOPS.
    assert found.forward_s([], [(0.0, 2048)]) == pytest.approx(2048 * 16e9 / 494.5e12)
    assert hardware_named("l4", "x", kv_bytes=1, parameters="1.5B").weights == 3e9


def test_a_gpu_needs_sizes() -> None:
    with pytest.raises(UsageError, match="--kv-bytes"):
        hardware_named("a100", "smollm2-135m")
    with pytest.raises(UsageError, match="--parameters 8B"):
        hardware_named("a100", "my-model", kv_bytes=1)
    with pytest.raises(UsageError, match="'many'"):
        hardware_named("a100", "my-model", kv_bytes=1, parameters="many")


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("smollm2-135m", 135e6),
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("Qwen2.5-1.5B", 1.5e9),
        ("random:llama-tiny", None),
        ("model-4bit", None),
    ],
)
def test_a_models_name_may_tell_its_size(model: str, size: float | None) -> None:
    assert parameters_of(model) == size


def test_every_gpu_has_room_for_its_model() -> None:
    for name in GPUS:
        assert hardware_named(name, "x-8b", kv_bytes=131072).kv_memory > 1e9
