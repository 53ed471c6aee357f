"""The loop: a failing row fails alone, a cancelled one stops, a closed engine says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
import torch

from kvcomm.engine import loop as loop_module
from kvcomm.engine.base import AHEAD, BACKGROUND, READY, Phases
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.loop import Decoding, Work
from kvcomm.engine.models import load_engine
from kvcomm.errors import KvcommError
from tests.engine.support import (
    COMPUTE,
    answer,
    decode,
    generate,
    ids_of,
    open_row,
    random_ids,
    segment,
)


def test_a_failed_forward_fails_its_rows_and_the_engine_goes_on(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_module.packed_forward

    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("out of luck")

    async def go() -> list[int]:
        monkeypatch.setattr(loop_module, "packed_forward", broken)
        with pytest.raises(RuntimeError, match="out of luck"):
            await open_row(tiny, 50).extend(
                [segment(random_ids(tiny, 30))], [COMPUTE], answer=answer(10)
            )
        monkeypatch.setattr(loop_module, "packed_forward", real)
        seq = open_row(tiny, 50)
        await seq.extend([segment(random_ids(tiny, 30))], [COMPUTE], answer=answer(10))
        return ids_of(await decode(seq))

    assert asyncio.run(go()) == generate(tiny, random_ids(tiny, 30), 10)


def test_nan_logits_fail_the_call_and_not_its_neighbour(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, other = random_ids(tiny, 30), random_ids(tiny, 21, seed=2)
    real = loop_module.packed_forward

    def broken(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        logits = real(model, packed, *rest)
        if packed[-1] == other[-1]:  # the bad row's prompt
            logits[-1] = float("nan")
        return logits

    monkeypatch.setattr(loop_module, "packed_forward", broken)

    async def go() -> list[int]:
        good, bad = open_row(tiny, 60), open_row(tiny, 60)
        await good.extend([segment(ids)], [COMPUTE], answer=answer(10))
        await bad.extend([segment(other)], [COMPUTE], answer=answer(10))
        results = await asyncio.gather(decode(good), decode(bad), return_exceptions=True)
        assert isinstance(results[1], KvcommError)
        assert "NaN" in str(results[1])
        assert not isinstance(results[0], BaseException)
        return ids_of(results[0])

    assert asyncio.run(go()) == generate(tiny, ids, 10)


def test_a_cancelled_extension_leaves_the_loop(tiny: LocalEngine) -> None:
    async def go() -> None:
        seq = open_row(tiny, 6000)
        task = asyncio.create_task(seq.extend([segment(random_ids(tiny, 6000))], [COMPUTE]))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps = tiny.loop.steps
        await open_row(tiny, 20).extend([segment(random_ids(tiny, 10))], [COMPUTE])
        assert tiny.loop.steps <= steps + 2

    asyncio.run(go())


def test_leaving_a_stream_early_stops_its_decoding(tiny: LocalEngine) -> None:
    async def go() -> None:
        seq = open_row(tiny, 4000)
        await seq.extend([segment(random_ids(tiny, 10))], [COMPUTE], answer=answer(3900))
        stream = seq.decode()
        async for _ in stream:
            break
        await stream.aclose()
        await seq.close()
        await tiny.call(lambda: None)
        steps = tiny.loop.steps
        await asyncio.sleep(0.05)
        assert tiny.loop.steps <= steps + 1

    asyncio.run(go())


def test_a_closed_engine_fails_what_waits_and_what_comes() -> None:
    engine = load_engine("random:llama-tiny", device="cpu")

    async def go() -> None:
        seq = open_row(engine, 8000)
        task = asyncio.create_task(seq.extend([segment(random_ids(engine, 8000))], [COMPUTE]))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.close)
        with pytest.raises(KvcommError, match="closed"):
            await task
        with pytest.raises(KvcommError, match="closed"):
            await seq.extend([segment([11, 12])], [COMPUTE])

    asyncio.run(go())


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every forward."""
    real, found = loop_module.packed_forward, list[int]()

    def seen(model: object, packed: list[int], *rest: object) -> torch.Tensor:
        found.append(len(packed))
        return real(model, packed, *rest)

    monkeypatch.setattr(loop_module, "packed_forward", seen)
    return found


async def test_background_work_goes_in_small_steps_when_nothing_else_is_due(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, packs: list[int]
) -> None:
    """An audit does not step between a producer's end and its reader's start."""
    monkeypatch.setattr(loop_module, "STEP_TOKENS_DECODING", 20)
    monkeypatch.setattr(loop_module, "PAUSE_S", 60.0)
    audit, ready = open_row(tiny, 100), open_row(tiny, 100)
    audit.hurry(BACKGROUND)
    await ready.extend([segment(random_ids(tiny, 90))], [COMPUTE])
    waiting = asyncio.ensure_future(audit.extend([segment(random_ids(tiny, 50))], [COMPUTE]))
    await asyncio.sleep(0.05)
    assert packs == [90]
    await tiny.quiet()  # background work is no reason to wait
    await ready.extend([segment(random_ids(tiny, 5))], [COMPUTE])
    assert packs == [90, 5]
    monkeypatch.setattr(loop_module, "PAUSE_S", 0.0)
    tiny.loop.wake()
    await waiting
    assert packs == [90, 5, 20, 20, 10]
    await audit.close()
    await ready.close()


async def test_prompts_share_a_step_only_while_it_is_small(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, packs: list[int]
) -> None:
    """The first of several long ones has its first token before the others are computed."""
    monkeypatch.setattr(loop_module, "FULL_STEP", 30)
    seqs = [open_row(tiny, 100) for _ in range(4)]
    sizes = (20, 20, 60, 40)
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait()

    # All four are queued before the loop looks at them.
    held = asyncio.ensure_future(tiny.call(hold))
    await asyncio.to_thread(started.wait)
    tasks = [
        asyncio.ensure_future(seq.extend([segment(random_ids(tiny, size))], [COMPUTE]))
        for seq, size in zip(seqs, sizes, strict=True)
    ]
    await asyncio.sleep(0.05)
    go.set()
    await asyncio.gather(held, *tasks)
    assert packs == [20 + 20, 60, 40]
    for seq in seqs:
        await seq.close()


async def test_work_that_comes_just_before_a_pause_is_not_kept_waiting(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its notification came when nobody was waiting yet."""
    monkeypatch.setattr(loop_module, "PAUSE_S", 60.0)
    audit, ready = open_row(tiny, 100), open_row(tiny, 100)
    audit.hurry(BACKGROUND)
    await ready.extend([segment(random_ids(tiny, 9))], [COMPUTE])
    pause, works = tiny.loop._pause, []

    def late() -> bool:
        if not works:
            ready._row.ids += random_ids(tiny, 5)
            places = range(9, 14)
            works.append(
                Work(ready._row, lambda: places, lambda: READY, 0, Phases(), lambda _: None)
            )
            tiny.loop.compute(works[0])
        return pause()

    monkeypatch.setattr(tiny.loop, "_pause", late)
    waiting = asyncio.ensure_future(audit.extend([segment(random_ids(tiny, 50))], [COMPUTE]))
    while not works:
        await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.wrap_future(works[0].future), 10)
    assert not waiting.done()
    monkeypatch.setattr(loop_module, "PAUSE_S", 0.0)
    tiny.loop.wake()
    await waiting
    await audit.close()
    await ready.close()


async def test_work_ahead_lets_who_is_ready_a_moment_later_go_first(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, packs: list[int]
) -> None:
    monkeypatch.setattr(loop_module, "HOLD_S", 60.0)
    ahead, ready = open_row(tiny, 100), open_row(tiny, 100)
    ahead.hurry(AHEAD)
    waiting = asyncio.ensure_future(ahead.extend([segment(random_ids(tiny, 50))], [COMPUTE]))
    await asyncio.sleep(0.05)
    assert packs == []
    await asyncio.wait_for(ready.extend([segment(random_ids(tiny, 9))], [COMPUTE]), 10)
    assert packs == [9]
    monkeypatch.setattr(loop_module, "HOLD_S", 0.0)
    tiny.loop.wake()
    await waiting
    assert packs == [9, 50]
    await ahead.close()
    await ready.close()


async def test_work_ahead_does_not_begin_in_the_step_in_which_an_answer_ends(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch, packs: list[int]
) -> None:
    """The answer's reader is ready a moment later, and a step cannot be interrupted."""
    monkeypatch.setattr(loop_module, "STEP_TOKENS_DECODING", 20)
    producer, ahead = open_row(tiny, 100), open_row(tiny, 900)
    ahead.hurry(AHEAD)
    sampled = tiny.loop._sampled
    ends: list[int] = []

    def last(decodings: list[Decoding]) -> list[Decoding]:
        due = sampled(decodings)
        if decodings and not due:
            monkeypatch.setattr(loop_module, "HOLD_S", 60.0)
            ends.append(len(packs))
        return due

    monkeypatch.setattr(tiny.loop, "_sampled", last)
    monkeypatch.setattr(loop_module, "HOLD_S", 0.0)
    waiting = asyncio.ensure_future(ahead.extend([segment(random_ids(tiny, 800))], [COMPUTE]))
    await producer.extend([segment(random_ids(tiny, 9))], [COMPUTE], answer=answer(5))
    tokens = await decode(producer)
    await asyncio.sleep(0.05)
    assert len(packs) == ends[0]  # nothing was computed since
    assert 21 in packs  # one of its tokens and 20 of the row ahead
    assert len(tokens) == 5
    assert not waiting.done()
    monkeypatch.setattr(loop_module, "HOLD_S", 0.0)
    tiny.loop.wake()
    await waiting
    await producer.close()
    await ahead.close()


async def test_rows_of_one_step_are_told_together(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who waits for both computes what the first one wrote before it knows of the second."""
    posted = []
    hand_out = loop_module._hand_out
    monkeypatch.setattr(
        loop_module, "_hand_out", lambda items: (posted.append(len(items)), hand_out(items))
    )
    rows = [open_row(tiny, 60) for _ in range(3)]
    for seed, row in enumerate(rows):
        await row.extend([segment(random_ids(tiny, 20, seed=seed))], [COMPUTE])
    last = segment(random_ids(tiny, 1))
    await asyncio.gather(*(row.extend([last], [COMPUTE], answer=answer(9)) for row in rows))
    answers = [len(tokens) for tokens in await asyncio.gather(*map(decode, rows))]
    assert sum(posted) == sum(answers)
    assert len(posted) <= max(answers) + 2  # rows may join one step after another


def test_a_program_may_end_while_the_engine_computes() -> None:
    code = (
        "import torch\n"
        "from kvcomm import load_engine\n"
        "engine = load_engine('random:llama-tiny', device='cpu')\n"
        "x = torch.eye(700)\n"
        "def compute():\n"
        "    for _ in range(100):\n"
        "        x @ x @ x\n"
        "engine.loop.submit(compute)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
