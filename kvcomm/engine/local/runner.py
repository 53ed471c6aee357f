"""One forward: the next tokens of sequences that answer, and pieces of prompts, packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvcomm.engine.clock import done_at
from kvcomm.engine.local.attention import Pack, Part, SharedPrefix, packed_forward
from kvcomm.engine.local.cuda_graphs import CudaGraphs
from kvcomm.engine.local.memory import out_of_memory, release_unused
from kvcomm.engine.local.scheduler import FULL_STEP, STEP_TOKENS
from kvcomm.engine.local.state import Prefill, SequenceState
from kvcomm.errors import OutOfMemory

SMALLEST_STEP = 16


@dataclass(eq=False)
class Chunk:
    """The next `slots` of a prompt; those in `shared` are taken from another one in the step."""

    prompt: Prefill
    slots: Sequence[int]
    shared: SharedPrefix | None = None

    @property
    def wanted(self) -> list[int]:
        """Which of the slots' logits are asked for; none while the prompt is only asked itself."""
        if self.prompt.query is not None:
            return []
        assert self.prompt.slots is not None
        first = len(self.prompt.slots) - self.prompt.logits - self.prompt.computed
        return list(range(max(first, 0), len(self.slots)))


class Runner:
    """Runs forwards. `relieve` frees memory when one has run out of it.

    `limit` is the most tokens of prompts that a step may have; it falls when memory runs out.
    """

    def __init__(
        self, model: Any, relieve: Callable[[], None], flash: bool, graphs: CudaGraphs | None
    ) -> None:
        self._model = model
        self._relieve = relieve
        self._flash = flash
        self._graphs = graphs
        self.limit = STEP_TOKENS
        self.steps = 0

    def run(
        self, answers: Sequence[SequenceState], chunks: list[Chunk]
    ) -> tuple[list[torch.Tensor], list[Chunk]]:
        """Compute a step; returns the logits of every answer, and the chunks that were computed.

        Those of chunks are collected in their prompts. When memory runs out, half of the chunks'
        tokens are tried once more. Raises `OutOfMemory` when that fails too.
        """
        found = self._try(answers, chunks)
        if found is None:
            # Outside of the handler, whose traceback holds on to the tensors of what failed.
            self._relieve()
            chunks = self._fewer(chunks)
            found = self._try(answers, chunks)
        if found is None:
            tokens = len(answers) + sum(len(chunk.slots) for chunk in chunks)
            raise OutOfMemory(f"computing {tokens} tokens")
        return found, chunks

    def _try(
        self, answers: Sequence[SequenceState], chunks: Sequence[Chunk]
    ) -> list[torch.Tensor] | None:
        """None when memory has run out, and nothing has happened then."""
        try:
            return self._forward(answers, chunks)
        except Exception as error:
            if out_of_memory(error):
                return None
            raise

    def _fewer(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The first half of these tokens; steps have no more from now on."""
        left = max(sum(len(chunk.slots) for chunk in chunks) // 2, 1)
        self.limit = min(self.limit, max(left, SMALLEST_STEP))
        fewer = []
        for chunk in chunks:
            if left > 0:
                fewer.append(Chunk(chunk.prompt, chunk.slots[:left], chunk.shared))
                left -= len(chunk.slots)
            elif chunk.shared is not None:  # what it was to take is cut: it begins anew
                chunk.prompt.slots = None
        return fewer

    def _forward(
        self, answers: Sequence[SequenceState], chunks: Sequence[Chunk]
    ) -> list[torch.Tensor]:
        device = self._model.device
        started = done_at(device)
        parts: list[Part] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for seq in answers:
            assert seq.answering is not None
            assert seq.answering.token is not None
            slot = len(seq)
            parts.append(Part(seq.kv, len(ids), range(slot, slot + 1)))
            wanted.append(len(ids))
            ids.append(seq.answering.token)
            positions.append(slot)
        for chunk in chunks:
            query = chunk.prompt.query
            watch = query.watch if query else None
            parts.append(Part(chunk.prompt.seq.kv, len(ids), chunk.slots, chunk.shared, watch))
            wanted += [len(ids) + index for index in chunk.wanted]
            ids += [chunk.prompt.seq.ids[slot] for slot in chunk.slots]
            positions += chunk.slots

        def compute() -> torch.Tensor:
            return packed_forward(self._model, ids, positions, wanted, Pack(parts, self._flash))

        if self._graphs is not None and len(answers) == 1 and not chunks:
            logits = self._graphs.step(answers[0], answers[0].kv, ids[0], positions[0], compute)
        else:
            logits = compute()
        self.steps += 1
        if len(ids) > FULL_STEP and device.type == "cpu":
            release_unused(device)
        spent = done_at(device) - started
        for seq in answers:
            assert seq.answering is not None
            seq.ids.append(seq.answering.token)  # type: ignore[arg-type]
            seq.answering.token = None
            seq.phases.add("decode", spent)
        taken = len(answers)
        for chunk in chunks:
            count = len(chunk.wanted)
            if count:
                chunk.prompt.collected.append(logits[taken : taken + count])
                taken += count
            chunk.prompt.computed += len(chunk.slots)
            chunk.prompt.seq.phases.add("forward", spent)
        return list(logits[: len(answers)])
