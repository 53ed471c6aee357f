"""Filling a prompt: it enters its sequence as its inputs become known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvcomm.engine.base import READY, Answer, EngineSequence, Extended
from kvcomm.engine.usage import PromptUsage
from kvcomm.errors import StartOver
from kvcomm.prompt import Segment, Template, common_prefix
from kvcomm.reuse.policy import Dense, Policy
from kvcomm.runtime.message_stream import MessageStream

# Chunks behind a message that is being written. Fine ones keep little for the moment when the
# last input is complete; they cost efficiency, so inputs that do not arrive last get coarse ones,
# which fill a step. What is left of these is due when the next producer begins.
FINE = 16
COARSE = 256
# Of a message that is realigned only leading tokens are computed, so there are few chunks.
LEADING = 8
STREAMED = Dense("followed while it was written")


@dataclass
class Filling:
    """One prompt on its way into sequences: into another one, from the start, when one was lost.

    A `patient` filling waits until the whole prompt is known. `on_ready` is called when the last
    input is complete.
    """

    template: Template
    policy: Policy
    inputs: Mapping[str, tuple[int, ...]]
    streams: Mapping[str, MessageStream]
    answer: Answer
    on_ready: Callable[[], None]
    usage: PromptUsage = field(default_factory=PromptUsage)
    done: list[Extended] = field(default_factory=list)
    base_tokens: int = 0  # computed for base KV, also on the way into sequences that were lost
    query_tokens: int = 0  # computed a first time to see what the prompt attends to
    ahead_s: float = 0.0
    patient: bool = False

    @property
    def decision(self) -> str:
        """What the policy decided for the prompt as a whole."""
        return next((d.decision for d in self.done if not d.dense), self.done[-1].decision)

    @property
    def dense(self) -> bool:
        """Whether nothing was reused on purpose."""
        return all(extended.dense for extended in self.done)

    def restart(self) -> None:
        """The sequence is gone: start over."""
        self.usage.restart()
        self.done.clear()

    async def run(self, seq: EngineSequence) -> None:
        """Extend the sequence as inputs become known.

        A message is followed while it is written: what is sure to be computed of it is, and the
        rest is taken when it is done. Raises `StartOver` when what is there turns out to be of no
        use; then the filling is patient.
        """
        pending: list[Segment] = []
        slots = self.template.slots()
        for index, slot in enumerate(slots):
            if isinstance(slot, Segment):
                pending.append(slot)
            elif slot in self.inputs:
                pending.append(Segment("placeholder", slot, self.inputs[slot], index=index))
            else:
                stream = self.streams[slot]
                later = [s for s in slots[index + 1 :] if isinstance(s, str)]
                done = await self._follow(seq, index, slot, pending, later)
                handle = None
                if self.policy.options.realigns:
                    handle = (await stream.delivered()).handle
                ids = tuple(stream.ids)
                pending.append(Segment("placeholder", slot, ids, handle, done, index))
        self.on_ready()
        self.ahead_s = sum(seq.phases.seconds.values())
        seq.set_priority(READY)
        await self._flush(seq, pending, last=self.answer)

    async def _follow(
        self,
        seq: EngineSequence,
        index: int,
        name: str,
        pending: list[Segment],
        later: Sequence[str],
    ) -> int:
        """Compute leading tokens of a message while it is written; returns how many there are.

        They are compared with the stream at every turn, and taken back where it has changed.
        """
        stream, done = self.streams[name], list[int]()
        while True:
            fresh = 0
            if stream.sealed or stream.followable:
                keep = common_prefix(done, stream.ids)
                if keep < len(done):
                    await seq.truncate(seq.length - (len(done) - keep))
                    self.usage.take_back(index, len(done) - keep)
                    del done[keep:]
                fresh = self.policy.leading(len(stream.ids), stream.most) - len(done)
            if stream.sealed:
                return len(done)
            if pending and self._ahead:
                await self._flush(seq, pending)
                continue
            open_later = [self.streams[name] for name in later if name in self.streams]
            arrives_last = all(stream.remaining >= other.remaining for other in open_later)
            fine = LEADING if self.policy.options.realigns else FINE
            chunk = fine if arrives_last else COARSE
            if fresh >= chunk and self._ahead:
                piece = tuple(stream.ids[len(done) : len(done) + fresh // chunk * chunk])
                segment = Segment("placeholder", name, piece, index=index)
                extended = await seq.extend([segment], STREAMED, settle=False)
                self.usage.add(extended.segments)
                done += piece
            else:
                await stream.change()

    @property
    def _ahead(self) -> bool:
        """Whether what is known enters the sequence before the last input has come."""
        return self.policy.options.ahead and not self.patient

    async def _flush(
        self, seq: EngineSequence, pending: list[Segment], *, last: Answer | None = None
    ) -> None:
        """Extend the sequence by everything that is known, and empty `pending`."""
        try:
            extended = await seq.extend(pending, self.policy, last=last)
        except StartOver as error:
            self.patient = True
            self.base_tokens += error.base_tokens
            raise
        self.usage.add(extended.segments)
        self.base_tokens += extended.base_tokens
        self.query_tokens += extended.query_tokens
        self.done.append(extended)
        pending.clear()
