"""The step of a sequence that decodes alone, as a CUDA graph: its kernels are started at once.

A step of one token is short on a GPU, where starting its kernels one by one from Python may take
longer than running them. So after a few lone steps of a sequence one is recorded, with the token,
its slot and the sequence's length in tensors that stay; from then on it is played again with other
numbers. It attends to the whole buffer up to that length, which only `flash_attention` can do.

A recorded step is used if it gives the logits of a plain one, and sooner. If one does not, none is
recorded again: the reason is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvcomm.engine.clock import done_at
from kvcomm.engine.local.attention import Lone, Pack, model_forward
from kvcomm.kv import KVBuffer

# Lone steps of a sequence before one is recorded: recording takes as long as a few of them.
PATIENCE = 8
TIMES = 3
log = logging.getLogger(__name__)

Recording = tuple[Callable[[], object], torch.Tensor]


def record_cuda(run: Callable[[], torch.Tensor]) -> Recording:
    """How to play `run` again, and the tensor that it then fills."""
    ahead = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    ahead.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(ahead):
        run()  # libraries allocate what they need at the first run, which cannot be recorded
    torch.cuda.current_stream().wait_stream(ahead)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


@dataclass(eq=False)
class _Recorded:
    """A recorded step of the sequence in `lone.buffer`."""

    lone: Lone
    ids: torch.Tensor
    play: Callable[[], object]
    logits: torch.Tensor

    def run(self, token: int, slot: int) -> torch.Tensor:
        """The logits `[1, vocabulary]` behind `token`, whose KV is in `slot` then."""
        self.lone.at(slot)
        self.ids.fill_(token)
        self.play()
        return self.logits.clone()


class CudaGraphs:
    """Recorded steps of sequences. Used by the engine's thread.

    `tolerance` is the relative error that a recorded step may have. `off` says why there are none.
    """

    def __init__(
        self,
        model: Any,
        tolerance: float,
        record: Callable[[Callable[[], torch.Tensor]], Recording] = record_cuda,
    ) -> None:
        self._model = model
        self._tolerance = tolerance
        self._record = record
        # By sequence: a recorded step holds its buffer, and must go when the sequence does.
        self._steps: WeakKeyDictionary[object, _Recorded] = WeakKeyDictionary()
        self._lone: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.off = ""

    def step(
        self,
        seq: object,
        buffer: KVBuffer,
        token: int,
        slot: int,
        plain: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """The logits behind `token` in `slot` of a sequence's buffer: of its recorded step if it
        has one, by `plain` if not.
        """
        step = self._steps.get(seq)
        if step is not None and step.lone.buffer is buffer:
            return step.run(token, slot)
        logits = plain()
        self._lone[seq] = self._lone.get(seq, 0) + 1
        if not self.off and self._lone[seq] >= PATIENCE:
            try:
                self.off, step = self._try(buffer, token, slot, logits, plain)
                if step is not None:
                    self._steps[seq] = step
            except Exception as error:
                self.off = f"recording failed: {error}"
            if self.off:
                self._steps.clear()
                log.warning("decoding without CUDA graphs: %s", self.off)
        return logits

    def _try(
        self,
        buffer: KVBuffer,
        token: int,
        slot: int,
        wanted: torch.Tensor,
        plain: Callable[[], torch.Tensor],
    ) -> tuple[str, _Recorded | None]:
        """Record a step, and compare it with a plain one; returns why it is not used, or it."""
        lone = Lone.of(buffer)
        ids = torch.zeros(1, 1, dtype=torch.long, device=wanted.device)
        pack = Pack([], flash=True, lone=lone)
        lone.at(slot)
        ids.fill_(token)
        play, out = self._record(
            lambda: model_forward(self._model, ids, lone.slot[None], lone.first, pack)
        )
        step = _Recorded(lone, ids, play, out)
        found = step.run(token, slot)
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if not error <= self._tolerance:
            return f"a recorded step differs from a plain one (relative error {error:.1e})", None
        runs = (plain, lambda: step.run(token, slot))
        slow, fast = (_seconds(run, wanted.device) for run in runs)
        if fast > slow:
            why = f"a recorded step takes {fast * 1e3:.1f} ms, a plain one {slow * 1e3:.1f}"
            return why, None
        return "", step


def _seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """The shortest of a few runs, to the moment when the result is there."""

    def once() -> float:
        began = done_at(device)
        run()
        return done_at(device) - began

    return min(once() for _ in range(TIMES))
