"""The way to PyTorch's flash kernel, with a plain product in the kernel's place (no GPU here)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional

from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine, cuda_graphs, flash
from kvcomm.engine.local.attention import Pack, Part, packed_forward
from kvcomm.engine.local.cuda_graphs import PATIENCE, CudaGraphs, Recording
from kvcomm.kv import KVBuffer
from tests.engine.support import (
    answer,
    answers_together,
    close_all,
    extend,
    generate,
    open_seq,
    random_ids,
    said,
)
from tests.support import shapes


class Kernel:
    """`varlen_attn` as documented: packed sequences, queries aligned with their last slots."""

    def __init__(self, wrong_by: float = 0.0) -> None:
        self.calls = 0
        self.wrong_by = wrong_by

    def __call__(self, *packed: Any, seqused_k: Any, window_size: Any, **options: Any) -> Any:
        self.calls += 1
        query, key, value, starts_q, starts_k, max_q, max_k = packed
        assert starts_q.tolist() == [0, max_q] == [0, len(query)]
        assert starts_k.tolist() == [0, max_k] == [0, len(key)]
        assert options.keys() == {"scale", "enable_gqa"}
        assert options["enable_gqa"] == (query.shape[1] != key.shape[1])
        if seqused_k is not None:
            assert seqused_k.dtype == torch.int32
            max_k = int(seqused_k.item())
        key, value = key[:max_k], value[:max_k]  # behind them there may be anything
        left, right = window_size
        behind = torch.arange(max_k - max_q, max_k)[:, None] - torch.arange(max_k)
        seen = (behind >= -right) & ((behind <= left) | (left < 0))
        heads = (part.transpose(0, 1)[None] for part in (query, key, value))
        out = functional.scaled_dot_product_attention(*heads, attn_mask=seen, **options)
        return out[0].transpose(0, 1) + self.wrong_by


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


@pytest.mark.parametrize(
    "kernel",
    [Kernel(wrong_by=0.01), Mock(side_effect=RuntimeError("head_dim should be a multiple of 8"))],
    ids=["wrong", "refuses"],
)
def test_a_kernel_that_does_not_do_is_not_used(loaded: Any, kernel: Any) -> None:
    engine = loaded("random:llama-tiny", kernel)
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


def check_lone(engine: LocalEngine, prompt: int, tokens: int) -> None:
    """A sequence that answers alone says what `generate` says."""
    ids = random_ids(engine, prompt, seed=1)
    assert answers_together(engine, [ids], tokens) == [generate(engine, ids, tokens)]


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
    check_lone(engine, 40, PATIENCE + 12)
    assert recorder.recorded == 1
    assert recorder.played > 10
    assert not engine.runner._graphs.off
    close_all()
    engine.core.call(gc.collect).result()
    assert not engine.runner._graphs._steps  # gone with the sequence


def test_a_sequence_may_answer_alone_then_with_another_and_alone_again(playing: Any) -> None:
    recorder = Recorder()
    engine = playing("llama-tiny", recorder)
    sizes = [(9, 60, 0), (20, 15, 5)]  # of prompt and answer, behind so many recorded steps

    async def one(prompt: int, tokens: int, behind: int) -> list[int]:
        while recorder.played < behind:
            await asyncio.sleep(0.001)
        seq = open_seq(engine, prompt + tokens)
        await extend(seq, random_ids(engine, prompt), answer(tokens))
        return await said(seq)

    async def go() -> list[list[int]]:
        return await asyncio.gather(*(one(*size) for size in sizes))

    found = asyncio.run(go())
    assert found == [generate(engine, random_ids(engine, n), tokens) for n, tokens, _ in sizes]
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
    ("recorder", "times", "why"),
    [
        (Recorder(wrong_by=0.1), None, "differs from a plain one"),
        (Recorder(broken=True), None, "recording failed: operation not permitted"),
        (Recorder(), (1.0, 2.0), "takes 2000.0 ms, a plain one 1000.0"),
    ],
    ids=["wrong", "broken", "slow"],
)
def test_what_does_not_do_is_never_played(
    playing: Any,
    recorder: Recorder,
    times: Any,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = playing("llama-tiny", recorder)
    if times:
        monkeypatch.setattr(cuda_graphs, "_seconds", Mock(side_effect=times))
    for _ in range(2):
        check_lone(engine, 30, PATIENCE + 5)
    assert why in engine.runner._graphs.off
    assert caplog.text.count(why) == 1


def test_it_is_for_half_precision_on_cuda() -> None:
    assert not flash.usable(torch.device("cpu"), torch.bfloat16)
    assert not flash.usable(torch.device("cuda"), torch.float32)
    pytest.importorskip("torch.nn.attention.varlen", reason="torch 2.10 brings it")
    assert flash.varlen_attn is not None
    assert flash.usable(torch.device("cuda"), torch.bfloat16)
