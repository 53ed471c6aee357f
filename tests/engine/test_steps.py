"""Steps: a failing call fails alone, a cancelled one stops, a closed engine says so."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch

from kvcomm.engine.base import AHEAD, BACKGROUND
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local import steps as steps_module
from kvcomm.errors import KvcommError
from tests.engine.support import (
    Forwards,
    answer,
    answered,
    at_once,
    extend,
    generate,
    ids_of,
    on_thread,
    open_seq,
    random_ids,
    said,
)
from tests.support import python


async def test_a_failed_forward_fails_its_sequences(tiny: LocalEngine, forwards: Forwards) -> None:
    ids = random_ids(tiny, 30)

    def broken(packed: list[int]) -> None:
        if len(forwards.sizes) in (1, 4):
            raise RuntimeError("out of luck")

    async def call() -> list[int]:
        seq = open_seq(tiny, 50)
        await extend(seq, ids, answer(10))
        return await said(seq)

    forwards.before = broken
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            await call()
    assert await call() == generate(tiny, ids, 10)


async def test_nan_logits_fail_no_neighbour(tiny: LocalEngine, forwards: Forwards) -> None:
    ids, other = random_ids(tiny, 30), random_ids(tiny, 21, seed=2)

    def damage(packed: list[int], logits: torch.Tensor) -> None:
        if packed[-1] == other[-1]:  # the bad one's prompt
            logits[-1] = float("nan")

    forwards.after = damage
    good, bad = open_seq(tiny, 60, prefix=True), open_seq(tiny, 60, prefix=True)
    await extend(good, ids, answer(10))
    await extend(bad, other, answer(10))
    found, error = await asyncio.gather(answered(good), answered(bad), return_exceptions=True)
    assert isinstance(error, KvcommError)
    assert "NaN" in str(error)
    assert not isinstance(found, BaseException)
    assert ids_of(found) == generate(tiny, ids, 10)
    assert len(tiny.prefix) == 0, "whatever was damaged, nothing grows from it"


async def test_a_cancelled_prefill_does_not_go_on(limited: LocalEngine, forwards: Forwards) -> None:
    limited.runner.limit = 20
    seq, running = open_seq(limited, 200), []

    async def prefill() -> None:
        running.append(asyncio.ensure_future(extend(seq, random_ids(limited, 200))))
        await running[0]

    async def cancel() -> None:
        running[0].cancel()
        await seq.close()

    lost, _ = await forwards.during(prefill, cancel)
    assert isinstance(lost, asyncio.CancelledError)
    await extend(open_seq(limited, 20), random_ids(limited, 10))
    assert forwards.sizes == [20, 10]


async def test_a_closed_engine_fails_what_waits_and_what_comes(
    forwards: Forwards,
) -> None:
    engine = load_engine("random:llama-tiny", device="cpu")
    engine.runner.limit = 20
    forwards.sizes.clear()
    seq = engine.open(open_seq(engine, 200).state.call)
    closing: list[asyncio.Future[None]] = []

    async def close() -> None:
        closing.append(asyncio.ensure_future(asyncio.to_thread(engine.close)))
        while not engine.core._closed:
            await asyncio.sleep(0)

    failed, _ = await forwards.during(lambda: extend(seq, random_ids(engine, 200)), close)
    await closing[0]
    assert "closed" in str(failed)
    with pytest.raises(KvcommError, match="closed"):
        await extend(seq, [11, 12])
    await seq.close()
    assert forwards.sizes == [20]


# --- what the steps of an engine are, as `schedule` says ---


async def test_others_wait_for_a_message_on_its_way(tiny: LocalEngine, forwards: Forwards) -> None:
    """Its reader comes first, and a step cannot be interrupted."""
    writer = open_seq(tiny, 100, followed=True)
    await extend(writer, random_ids(tiny, 9), answer(3))
    await answered(writer)
    forwards.sizes.clear()
    waiting = [
        asyncio.ensure_future(extend(open_seq(tiny, 100, priority=p), random_ids(tiny, n)))
        for p, n in ((AHEAD, 50), (BACKGROUND, 20))
    ]
    await on_thread(tiny)
    await extend(open_seq(tiny, 100), random_ids(tiny, 30))
    assert forwards.sizes == [30]
    assert not any(task.done() for task in waiting)
    await writer.finish()
    await asyncio.gather(*waiting)
    assert sorted(forwards.sizes) == [20, 30, 50]


async def test_answers_of_one_step_are_handed_out_together(
    tiny: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who waits for both computes what the first one wrote before it knows of the second."""
    posted, put = [], steps_module._put
    monkeypatch.setattr(
        steps_module, "_put", lambda events: (posted.append(len(events)), put(events))
    )
    seqs = [open_seq(tiny, 60) for _ in range(3)]
    prompts = {seq: random_ids(tiny, 20, seed=seed) for seed, seq in enumerate(seqs)}
    await at_once(tiny, *[partial(extend, seq, prompts[seq], answer(9)) for seq in seqs])
    answers = [len(tokens) for tokens in await asyncio.gather(*map(answered, seqs))]
    assert posted == [sum(n > step for n in answers) for step in range(max(answers))]


def test_a_program_may_end_while_the_engine_computes() -> None:
    code = (
        "import torch\n"
        "from kvcomm import load_engine\n"
        "engine = load_engine('random:llama-tiny', device='cpu')\n"
        "x = torch.eye(700)\n"
        "def compute():\n"
        "    for _ in range(100):\n"
        "        x @ x @ x\n"
        "engine.core.call(compute)\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
