"""Work on a device is timed when it is done, and no clock is read that does not wait for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import kvcomm
from kvcomm.engine import clock
from kvcomm.engine.clock import done_at, wait_for
from kvcomm.engine.local import LocalEngine
from tests.engine.support import (
    Forwards,
    Given,
    answer,
    answered,
    extend,
    fill,
    open_seq,
    prompt_of,
    random_ids,
    rotated,
)

# Where a clock is read without waiting for a device, and what for.
UNTIMED = {
    "engine/clock.py": "done_at itself",
    "engine/collected.py": "when ids were collected",
    "engine/dense.py": "when a token was handed out: it was read from the device",
    "engine/local/steps.py": "when a token was drawn, and a prompt done",
    "engine/ray.py": "how long replicas may take to start again",
    "engine/served/pool.py": "how long servers may take to answer again",
    "engine/served/realigned.py": "when a server's answer arrived",
    "engine/served/sequence.py": "when a server's answer arrived",
}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch, forwards: Forwards) -> list[str]:
    """The devices that were waited for, and `forward` where one was begun."""
    found: list[str] = []
    forwards.before = lambda ids: found.append("forward")
    monkeypatch.setattr(clock, "wait_for", lambda device: found.append(str(device)))
    return found


def test_a_device_is_waited_for_and_a_cpu_need_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append("mps"))
    wait_for(torch.device("cpu"))
    wait_for("cpu")
    assert waits == []
    before = done_at("mps")
    assert done_at(torch.device("cuda", 1)) >= before
    assert waits == ["mps", torch.device("cuda", 1)]


async def test_a_forward_is_timed_from_an_idle_device_to_an_idle_device(
    tiny: LocalEngine, waited: list[str]
) -> None:
    seq = open_seq(tiny, 60)
    await extend(seq, random_ids(tiny, 30), answer(3))
    await answered(seq)
    assert waited == ["cpu"] + ["cpu", "forward", "cpu"] * 3  # first it is looked up


async def test_so_are_a_prefix_hit_and_what_realigning_takes(
    tiny: LocalEngine, waited: list[str]
) -> None:
    ids = random_ids(tiny, 40)
    for _ in range(2):
        waited.clear()
        await extend(open_seq(tiny, 60, prefix=True), ids)
    assert waited == ["cpu"] * 3  # looked up, and all of it was found
    segments = await prompt_of(tiny)
    await fill(tiny, segments, Given())  # base KV is there
    waited.clear()
    seq, _ = await fill(tiny, segments, Given({1: rotated()}))
    assert waited.index("forward") - 1 == 2 + 2 + 3  # looking up, predicting, rotating and filling
    assert {"offsets", "rotate", "fill", "forward"} <= seq.phases.seconds.keys()


def test_no_other_clock_times_a_device() -> None:
    package = Path(kvcomm.__file__).parent
    parts = ("engine", "reuse", "kv", "bench")
    files = [path for part in parts for path in (package / part).rglob("*.py")]
    found = {
        path.relative_to(package).as_posix()
        for path in files
        if re.search(r"(perf_counter|monotonic)\(\)(?!`)", path.read_text())
    }
    assert found == UNTIMED.keys()
