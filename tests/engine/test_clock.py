"""Work on a device is timed when it is done, and no clock is read that does not wait for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import kvcomm
from kvcomm.engine import clock
from kvcomm.engine import loop as loop_module
from kvcomm.engine.base import Call
from kvcomm.engine.clock import done_at, wait_for
from kvcomm.engine.local import LocalEngine
from kvcomm.reuse.plan import Step
from tests.engine.support import COMPUTE, answer, decode, open_row, random_ids, segment
from tests.engine.test_bases import TEMPLATE

# Where a clock is read without waiting for a device, and what for.
UNTIMED = {
    "engine/clock.py": "done_at itself",
    "engine/dense.py": "when a token was handed out: it was read from the device",
    "engine/loop.py": "when to begin work ahead and in the background; when a token was drawn",
    "engine/replicas/engine.py": "how long replicas may take to start",
    "engine/replicas/measure.py": "how long KV is on its way: the replica waits for its device",
    "engine/replicas/moves.py": "how long KV is on its way: its checksum was read at the end",
    "engine/replicas/sequence.py": "when a token arrived",
    "engine/replicas/sharing.py": "when replicas exchange what they learned",
    "engine/served/engine.py": "when a server's answer arrived",
    "engine/served/sequence.py": "when a server's answer arrived",
}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were waited for, and `forward` where one was begun."""
    found: list[str] = []
    real = loop_module.packed_forward

    def forward(*args: object) -> torch.Tensor:
        found.append("forward")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(clock, "wait_for", lambda device: found.append(str(device)))
    monkeypatch.setattr(loop_module, "packed_forward", forward)
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
    seq = open_row(tiny, 60)
    await seq.extend([segment(random_ids(tiny, 30))], [COMPUTE], answer=answer(3))
    await decode(seq)
    assert waited == ["cpu", "forward", "cpu"] * 3
    await seq.close()


async def test_so_are_a_prefix_hit_and_what_realigning_takes(
    tiny: LocalEngine, waited: list[str]
) -> None:
    ids = random_ids(tiny, 40)
    first, second = (open_row(tiny, 60, prefix=True) for _ in range(2))
    await first.extend([segment(ids)], [COMPUTE])
    waited.clear()
    await second.extend([segment(ids)], [COMPUTE])
    assert waited == ["cpu", "cpu"]  # all of it was found
    seq = tiny.open(Call("n", TEMPLATE, 120, offsets="anchors"))
    survey = await seq.survey(TEMPLATE.fill({"task": tuple(random_ids(tiny, 17))}))
    waited.clear()
    steps = [COMPUTE, Step("realign", "test", (), corrected=False), COMPUTE]
    await seq.extend(survey.segments, steps)
    before = waited[: waited.index("forward") - 1]
    assert len(before) == 2 + 2 + 1  # prediction, rotation in it, filling
    assert {"offsets", "rotate", "fill", "forward"} <= seq.phases.seconds.keys()
    for row in (first, second, seq):
        await row.close()


def test_no_other_clock_times_a_device() -> None:
    package = Path(kvcomm.__file__).parent
    files = [*package.glob("engine/**/*.py"), *package.glob("reuse/**/*.py")]
    files += [*package.glob("kv/*.py")]
    files += [package / "runtime" / f"{name}.py" for name in ("speed", "throughput")]
    found = {
        path.relative_to(package).as_posix()
        for path in files
        if re.search(r"(perf_counter|monotonic)\(\)(?!`)", path.read_text())
    }
    assert found == UNTIMED.keys()
