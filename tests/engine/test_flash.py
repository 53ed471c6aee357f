"""The way to PyTorch's flash kernel, with a plain product in the kernel's place (no GPU here)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine, cuda_graphs, flash
from kvcomm.engine.local.attention import Pack, Part, packed_forward
from kvcomm.engine.local.cuda_graphs import PATIENCE, CudaGraphs, Recording
from kvcomm.kv import KVBuffer
from tests.engine.support import (
    answer,
    answers_together,
    extend,
    generate,
    open_seq,
    random_ids,
    said,
    spec,
)
from tests.support import shapes


class Kernel:
    """`varlen_attn` as documented: packed sequences, queries aligned with their last slots."""

    def __init__(self, wrong_by: float = 0.0) -> None:
        self.calls = 0
        self.wrong_by = wrong_by

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor | None,
    ) -> torch.Tensor:
        self.calls += 1
        assert cu_seq_q.tolist() == [0, max_q]
        assert cu_seq_k.tolist() == [0, max_k]
        assert (query.shape[0], key.shape[0]) == (max_q, max_k)
        if seqused_k is not None:
            assert seqused_k.dtype == torch.int32
            max_k = int(seqused_k.item())
        assert enable_gqa == (query.shape[1] != key.shape[1])
        out = torch.empty_like(query)
        left, right = window_size
        for head in range(query.shape[1]):
            of = head // (query.shape[1] // key.shape[1])
            for i in range(max_q):
                at = max_k - max_q + i
                first = 0 if left < 0 else max(0, at - left)
                seen = slice(first, at + right + 1)
                scores = (key[seen, of] @ query[i, head]) * (scale or query.shape[2] ** -0.5)
                out[i, head] = scores.softmax(0) @ value[seen, of] + self.wrong_by
        return out


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads an engine with this kernel in the place of PyTorch's."""
    engines: list[LocalEngine] = []

    def load(name: str, kernel: Any) -> LocalEngine:
        monkeypatch.setattr(flash, "usable", lambda device, dtype: True)
        monkeypatch.setattr(flash, "varlen_attn", kernel)
        engines.append(load_engine(name, dtype="float64", device="cpu"))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("shape", shapes("llama-tiny", "mistral-tiny"))
def test_every_model_answers_as_without_it(loaded: Any, shape: str) -> None:
    kernel = Kernel()
    engine = loaded(f"random:{shape}", kernel)
    assert engine.runner._flash
    before = kernel.calls
    prompts = [random_ids(engine, size, seed=size) for size in (1, 30, 41)]

    found = answers_together(engine, prompts, 5)
    assert kernel.calls > before
    assert found == [generate(engine, ids, 5) for ids in prompts]


def test_a_kernel_that_is_wrong_for_a_model_is_not_used(loaded: Any) -> None:
    engine = loaded("random:llama-tiny", Kernel(wrong_by=0.01))
    assert engine.capabilities.reuse
    assert not engine.runner._flash


def test_a_kernel_that_refuses_the_heads_is_not_used(loaded: Any) -> None:
    def refuses(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("head_dim should be a multiple of 8")

    engine = loaded("random:llama-tiny", refuses)
    assert engine.capabilities.reuse
    assert not engine.runner._flash


class Recorder:
    """In the place of CUDA graphs: playing runs the same again, into the same tensor."""

    def __init__(self, wrong_by: float = 0.0, broken: bool = False) -> None:
        self.recorded = self.played = 0
        self.wrong_by = wrong_by
        self.broken = broken

    def __call__(self, run: Callable[[], torch.Tensor]) -> Recording:
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        out = run()

        def play() -> None:
            self.played += 1
            out.copy_(run() + self.wrong_by)

        return play, out


def lone(engine: LocalEngine, prompt: int, tokens: int) -> list[int]:
    """The answer of a sequence that answers alone."""

    async def go() -> list[int]:
        seq = engine.open(spec(prompt + tokens))
        await extend(seq, random_ids(engine, prompt, seed=1), answer(tokens))
        return await said(seq)

    return asyncio.run(go())


def expected(engine: LocalEngine, prompt: int, tokens: int) -> list[int]:
    return generate(engine, random_ids(engine, prompt, seed=1), tokens)


@pytest.fixture
def playing(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads an engine whose lone sequences play steps that `recorder` has recorded."""

    def load(shape: str, recorder: Recorder) -> LocalEngine:
        engine: LocalEngine = loaded(f"random:{shape}", Kernel())
        engine.runner._graphs = CudaGraphs(engine.network, 1e-6, recorder)
        # Playing is no faster here.
        monkeypatch.setattr(cuda_graphs, "_seconds", lambda run, device: float(run().sum()) * 0)
        return engine

    return load


@pytest.mark.parametrize("shape", shapes("llama-tiny", "mistral-tiny"))
def test_a_sequence_that_answers_alone_plays_a_recorded_step(playing: Any, shape: str) -> None:
    recorder = Recorder()
    engine = playing(shape, recorder)
    tokens = PATIENCE + 12
    assert lone(engine, 40, tokens) == expected(engine, 40, tokens)
    assert recorder.recorded == 1
    assert recorder.played > 10
    assert not engine.runner._graphs.off
    engine.core.call(gc.collect).result()
    assert not engine.runner._graphs._steps  # gone with the sequence


def test_a_sequence_may_answer_alone_then_with_another_and_alone_again(playing: Any) -> None:
    recorder = Recorder()
    engine = playing("llama-tiny", recorder)
    sizes = ((9, 60), (20, 15))
    prompts = [random_ids(engine, size, seed=size) for size, _ in sizes]

    async def one(ids: list[int], tokens: int, behind: int) -> list[int]:
        while recorder.played < behind:
            await asyncio.sleep(0.001)
        seq = open_seq(engine, len(ids) + tokens)
        await extend(seq, ids, answer(tokens))
        return await said(seq)

    async def go() -> list[list[int]]:
        return await asyncio.gather(one(prompts[0], 60, 0), one(prompts[1], 15, 5))

    found = asyncio.run(go())
    steps = zip(prompts, sizes, strict=True)
    assert found == [generate(engine, ids, tokens) for ids, (_, tokens) in steps]
    assert recorder.recorded == 1
    assert 5 < recorder.played < 60 - 10


def test_a_step_recorded_for_another_buffer_is_not_played(playing: Any) -> None:
    recorder = Recorder()
    engine = playing("llama-tiny", recorder)
    ids, slots = random_ids(engine, 20, seed=1), range(20)
    buffers = [engine._new_buffer(size) for size in (80, 100)]

    def plain(buffer: KVBuffer) -> torch.Tensor:
        return packed_forward(engine.network, ids, slots, [19], Pack([Part(buffer, 0, slots)]))

    with torch.inference_mode():
        for number, buffer in enumerate(buffers, 1):
            for _ in range(PATIENCE + 1):
                run = partial(plain, buffer)
                found = engine.runner._graphs.step(engine, buffer, ids[-1], 19, run)
            assert recorder.recorded == number
            assert torch.allclose(found, plain(buffer), atol=1e-9)


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (Recorder(wrong_by=0.1), "differs from a plain one"),
        (Recorder(broken=True), "recording failed: operation not permitted"),
    ],
)
def test_what_cannot_be_played_right_is_never_played(
    playing: Any, recorder: Recorder, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = playing("llama-tiny", recorder)
    tokens = PATIENCE + 5
    for _ in range(2):
        assert lone(engine, 30, tokens) == expected(engine, 30, tokens)
    assert why in engine.runner._graphs.off
    assert caplog.text.count(why) == 1


def test_what_is_not_faster_is_not_played(playing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    engine = playing("llama-tiny", recorder)
    times = iter((1.0, 2.0))
    monkeypatch.setattr(cuda_graphs, "_seconds", lambda run, device: next(times))
    assert lone(engine, 30, PATIENCE + 5) == expected(engine, 30, PATIENCE + 5)
    assert "takes 2000.0 ms, a plain one 1000.0" in engine.runner._graphs.off


def test_it_is_for_half_precision_on_cuda() -> None:
    assert not flash.usable(torch.device("cpu"), torch.bfloat16)
    assert not flash.usable(torch.device("cuda"), torch.float32)
    pytest.importorskip("torch.nn.attention.varlen", reason="torch 2.10 brings it")
    assert flash.varlen_attn is not None
    assert flash.usable(torch.device("cuda"), torch.bfloat16)
