"""Moving KV or computing it, by given numbers; and what a parcel does to KV. No Ray is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvcomm.engine.replicas.costs import Rate, choose
from kvcomm.engine.replicas.parcel import packed, unpacked
from kvcomm.kv import KV
from kvcomm.trace.text import megabytes

CPU = torch.device("cpu")
MB = 1_000_000


def test_the_faster_way_is_chosen_and_both_are_told() -> None:
    moving, computing = Rate(0.01, 1e-8), Rate(0.005, 1e-4)
    few, many = choose(moving, computing, MB, 100), choose(moving, computing, 10 * MB, 2000)
    assert not few.move
    assert few.reason == "moving 1.0 MB would take 0.020 s, computing 0.010 s"
    assert many.move
    assert many.expected_s == pytest.approx(0.11)
    slow = Rate(0.01, 1e-8, lately=2.0)
    assert not choose(slow, computing, 10 * MB, 2000).move


def test_a_rate_is_the_line_through_two_measurements_and_never_falls() -> None:
    rate = Rate.through((100, 0.2), (1100, 0.3))
    assert rate.seconds(600) == pytest.approx(0.25)
    noise = Rate.through((100, 0.3), (1100, 0.2))
    assert (noise.fixed, noise.each) == (0.3, 0.0)
    steep = Rate.through((100, 0.01), (200, 0.2))
    assert steep.fixed == 0.0


def test_a_rate_follows_what_is_measured_and_forgets_what_is_not() -> None:
    rate = Rate(0.0, 1e-3)
    for _ in range(30):
        rate.learn(100, 0.4)
    assert rate.seconds(100) == pytest.approx(0.4, rel=0.01)
    rate.learn(100, 40.0)
    assert rate.seconds(100) < 1.5, "one stall is not believed"
    for _ in range(60):
        rate.fade()
    assert rate.seconds(100) == pytest.approx(0.1, rel=0.01)


def test_moving_is_tried_again_some_time_after_a_stall() -> None:
    moving, computing = Rate(0.01, 1e-8), Rate(0.0, 1e-4)
    moving.learn(MB, 1e4)
    refused = 0
    while not choose(moving, computing, 10 * MB, 1_500).move:
        refused += 1
    assert 0 < refused < 100


def test_sizes_are_readable() -> None:
    assert [megabytes(n) for n in (59_904, 3_145_728)] == ["59.9 kB", "3.1 MB"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_parcel_keeps_every_bit(dtype: torch.dtype) -> None:
    kv = KV(*torch.randn(2, 3, 2, 7, 4).to(dtype))
    kv.keys[0, 0, 0, 0] = float("nan")
    parcel = packed(kv.slice(1, 6))
    assert parcel.array.flags["C_CONTIGUOUS"]
    parcel.array.flags.writeable = False  # as Ray hands it out
    found = unpacked(parcel, CPU)
    assert found.keys.dtype == dtype
    assert found.checksum() == kv.slice(1, 6).checksum()
    bits = torch.int16 if dtype.itemsize == 2 else torch.int32
    assert torch.equal(found.values.view(bits), kv.slice(1, 6).values.contiguous().view(bits))


def test_a_damaged_parcel_is_refused() -> None:
    parcel = packed(KV(*torch.randn(2, 3, 2, 7, 4)))
    with pytest.raises(ValueError, match="damaged on the way"):
        unpacked(replace(parcel, checksum="another"), CPU)
