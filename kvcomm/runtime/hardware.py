"""What a replica on this machine can do, measured with the engine's own loop."""

from __future__ import annotations

import itertools
import random
import statistics
from asyncio import gather
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcomm.engine.base import Answer, Call, EngineSequence
from kvcomm.engine.clock import done_at
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import hardware
from kvcomm.plan.hardware import Hardware
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Step
from kvcomm.runtime.workload import text_of
from kvcomm.sampling import Sampling

COMPUTE = Step("compute", "benchmark")
CHUNKS = (1, 2, 4, 8, 16, 64, 256, 1024, 2048)
ROWS = (1, 2, 4, 8)
# Tokens in front of what is measured: few, and many, where the model has room.
NEAR, FAR = 64, 2048
BEHIND = 64  # one of the chunks
STEPS = 12
# Sampled hot, so that no row ends early.
HOT = 2.0


@dataclass
class Measured:
    """Measures an engine in rounds that interleave everything; medians over rounds count.

    `chunks` are lengths that are prefilled, `far` is the context behind which is measured.
    """

    engine: LocalEngine
    chunks: Sequence[int] = CHUNKS
    far: int = FAR
    on_step: Callable[[str], None] = lambda what: None
    prefill: dict[int, list[float]] = field(default_factory=dict)
    behind: list[float] = field(default_factory=list)
    decode: dict[int, list[float]] = field(default_factory=dict)
    distant: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    @property
    def _far(self) -> int:
        return min(self.far, self.engine.max_context // 2)

    async def round(self) -> None:
        """Every length and number of rows once."""
        ids = self._ids()
        await self._chunks(ids)
        for rows in ROWS:
            self.decode.setdefault(rows, []).append(await self._decode(ids[:NEAR], rows))
        self.distant.append(await self._decode(ids[: self._far], 1))
        self.on_step(
            f"prefill of {max(self.prefill):,} tokens {self.prefill[max(self.prefill)][-1]:.3f} s, "
            f"a step of one row {self.decode[1][-1]:.4f} s, of {max(ROWS)} {self.decode[8][-1]:.4f}"
        )

    def result(self) -> Hardware:
        """The description that was measured so far."""
        engine = self.engine
        prefill = {count: statistics.median(found) for count, found in self.prefill.items()}
        decode = {rows: statistics.median(found) for rows, found in self.decode.items()}
        far = self._far / 1000
        # On top of a chunk that attends to itself only.
        attend = max(statistics.median(self.behind) - prefill[BEHIND], 0.0)
        attend_s = attend / BEHIND / far
        read_s = max(statistics.median(self.distant) - decode[1], 0.0) / (far - NEAR / 1000)
        weights = float(sum(part.nbytes for part in engine.network.parameters()))
        itself = {
            count: max(seconds - attend_s * count * count / 2000, seconds / 2)
            for count, seconds in prefill.items()
        }
        return Hardware(
            name=hardware(engine),
            source="measured",
            model=engine.model,
            # As the engine sees it: its budget is half of what the weights leave.
            memory=2 * engine.budget.limit + weights,
            weights=weights,
            kv_bytes=engine.slot_bytes,
            prefill=tuple(itself.items()),
            decode=tuple(decode.items()),
            attend_s=attend_s,
            read_s=read_s,
            call_s=statistics.median(self.calls),
        )

    async def _chunks(self, ids: Sequence[int]) -> None:
        seq = self._open(len(ids) + BEHIND)
        try:
            for count in self.chunks:
                if count <= len(ids):
                    spent = await self._compute(seq, ids[:count])
                    self.prefill.setdefault(count, []).append(spent)
                    await seq.truncate(0)
            await self._compute(seq, ids[: self._far])
            self.behind.append(await self._compute(seq, ids[:BEHIND]))
        finally:
            await seq.close()

    async def _compute(self, seq: EngineSequence, ids: Sequence[int]) -> float:
        """Seconds in forwards of one chunk; what else the call takes is kept in `calls`."""
        before, began = seq.phases.seconds.get("forward", 0.0), done_at(self.engine.device)
        segment = Segment("placeholder", "text", tuple(ids))
        await seq.extend([segment], [COMPUTE], settle=False)
        took = done_at(self.engine.device) - began
        spent = seq.phases.seconds["forward"] - before
        self.calls.append(max(took - spent, 0.0))
        return spent

    async def _decode(self, ids: Sequence[int], rows: int) -> float:
        """Seconds of a step in which so many rows decode together."""
        seqs = [self._open(len(ids) + STEPS) for _ in range(rows)]
        try:
            for seq in seqs:
                await self._compute(seq, ids[:-1])
            times = await gather(
                *(self._row(seq, ids[-1], number) for number, seq in enumerate(seqs))
            )
        finally:
            for seq in seqs:
                await seq.close()
        # Rows join one by one: what counts is when all of them decode.
        began = max(found[0] for found in times)
        steps = [at for at in times[-1] if at >= began]
        return statistics.median(b - a for a, b in itertools.pairwise(steps))

    async def _row(self, seq: EngineSequence, last: int, number: int) -> list[float]:
        answer = Answer(Sampling(temperature=HOT, max_tokens=STEPS), seed=number)
        await seq.extend([Segment("placeholder", "text", (last,))], [COMPUTE], answer=answer)
        return [token.at async for token in seq.decode()]

    def _open(self, capacity: int) -> EngineSequence:
        template = Template(((), ()), ("text",), "hardware")
        return self.engine.open(Call(node="hardware", template=template, capacity=capacity))

    def _ids(self) -> list[int]:
        longest = min(max(*self.chunks, self.far), self.engine.max_context - BEHIND)
        text = text_of(self.engine.codec, longest + 8, random.Random(0))
        return self.engine.codec.encode(text)[:longest]
