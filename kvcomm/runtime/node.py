"""One attempt at one node: fill the row, decode, send the message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from kvcomm.agents import Agent
from kvcomm.engine import base as engine_base
from kvcomm.engine.base import AHEAD, READY, Engine, EngineSequence, Token
from kvcomm.errors import KvcommError, NotANumber, Preempted, StartOver
from kvcomm.graphs import Node
from kvcomm.message import Message, outgoing, strip_thinking
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import Choice
from kvcomm.reuse.plan import Step
from kvcomm.reuse.policy import Dense, Policy
from kvcomm.reuse.recipe import LINEAR
from kvcomm.runtime import report
from kvcomm.runtime.apart import called
from kvcomm.runtime.audit import Auditor, Finished
from kvcomm.runtime.draft import Draft
from kvcomm.runtime.filling import FINE, Filling
from kvcomm.runtime.loan import Loan
from kvcomm.runtime.result import Call
from kvcomm.runtime.stopping import StopTexts, before
from kvcomm.trace.events import CallInterrupted, MessageSent, NodeStarted, SegmentStep
from kvcomm.trace.record import Recorder

FORCED = Step("compute", "forced")

After = Callable[["Attempt", EngineSequence], Awaitable[None]]
Interrupted = list[tuple[CallInterrupted, list[SegmentStep]]]


@dataclass
class Attempt:
    """Runs a node once. Inputs are texts as ids, or drafts of predecessors' messages.

    `uses` are the engine's steps at which the message will be read, `next_uses` those at which
    others will read the same inputs. KV of inputs comes by `loans`, and goes by `lends`. What an
    attempt that is cancelled leaves is added to `interrupted`.
    """

    engine: Engine
    node: Node
    agent: Agent
    template: Template
    policy: Policy
    inputs: Mapping[str, tuple[int, ...]]
    drafts: Mapping[str, Draft]
    draft: Draft
    uses: tuple[int, ...]
    next_uses: Mapping[str, int]
    loans: Mapping[str, Loan]
    lends: Mapping[str, Loan]
    recorder: Recorder
    number: int
    seed: int
    namespace: str
    started: float
    on_token: Callable[[str, int], None] | None = None
    record: bool = False
    after: After | None = None
    auditor: Auditor | None = None
    choice: Choice | None = None
    forced: tuple[int, ...] = ()
    run_name: str = ""
    goes_on: bool = False
    opened: float = 0.0
    sampled: int | None = None
    stopped: bool = False
    reported: bool = False
    tokens: list[Token] = field(default_factory=list)
    interrupted: Interrupted = field(default_factory=list)

    async def run(self, deadline: asyncio.Timeout, on_report: Callable[[Call], None]) -> None:
        """The whole call; `deadline` counts from its last input to its report.

        `on_report` is called when the message is out; audits may follow.
        """
        if self.auditor is not None:
            await self._choose(self.auditor)
        self.opened = time.perf_counter()
        filling = self._filling(deadline)
        while True:
            call, seq = await self._open(deadline, patient=filling.patient)
            try:
                await self._fill(filling, seq)
                await self._finish(call, seq, filling, deadline, on_report)
                return
            except (Preempted, StartOver):
                if self.draft.sealed:
                    raise  # it has answered: nothing is to be said twice
                self._restart()
                filling.drop()
            except asyncio.CancelledError:
                if not self.reported:
                    report.interrupted(self, seq, filling)
                raise
            except NotANumber as error:
                if not filling.reused or self.draft.sealed:
                    raise
                # What was reused may be damaged: the prompt is computed instead.
                self.policy, self.choice = Dense(f"computed, because with reuse {error}"), None
                self._restart()
                filling = self._filling(deadline)
            finally:
                await asyncio.shield(seq.close())

    def _restart(self) -> None:
        """What it wrote does not count."""
        self.tokens = []
        if self.draft.ids:
            self.draft.restart()

    async def _fill(self, filling: Filling, seq: EngineSequence) -> None:
        """Fill the row, unless it loses its room meanwhile; then `Preempted` is raised."""
        tasks = [asyncio.ensure_future(filling.run(seq)), asyncio.ensure_future(seq.lost())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise Preempted(f"the row of `{self.node.name}` gave way while it waited")
            await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _filling(self, deadline: asyncio.Timeout) -> Filling:
        sampling = self.agent.sampling
        first = replace(sampling, max_tokens=1) if self.forced else sampling
        return Filling(
            self.template,
            self.policy,
            self.inputs,
            self.drafts,
            answer=engine_base.Answer(first, self.seed, record=self.record),
            room=sampling.max_tokens,
            on_ready=lambda: self._start_deadline(deadline),
            loans=self.loans,
            lends=self.lends,
        )

    async def _open(
        self, deadline: asyncio.Timeout, *, patient: bool
    ) -> tuple[engine_base.Call, EngineSequence]:
        """A row: at once to work ahead, if there is room; else when all inputs are there."""
        call = self.engine_call()
        early = call.priority == AHEAD and not patient
        seq = self.engine.spare(call) if early else None
        if seq is None:
            for draft in self.drafts.values():
                await draft.delivered()
            for loan in self.borrowed.values():
                await loan.given()
            self._start_deadline(deadline)
            call = self.engine_call()
            seq = await self.engine.enter(call)
        self.recorder.write(NodeStarted, node=self.node.name, attempt=self.number)
        return call, seq

    async def _finish(
        self,
        call: engine_base.Call,
        seq: EngineSequence,
        filling: Filling,
        deadline: asyncio.Timeout,
        on_report: Callable[[Call], None],
    ) -> None:
        """From the first token to the report, and what comes behind it."""
        tokens = await self._decode(seq)
        sent = await self._send(seq, tokens)
        try:
            # Behind the message, off its consumers' way to their first token.
            await seq.settle()
            if learn := filling.plans[-1].learn:
                await seq.observe(learn)
        finally:
            self.reported = True
            on_report(report.finished(self, seq, filling, tokens, sent))
        deadline.reschedule(None)
        if self.auditor is not None and self.choice is not None:
            # Of an answer that was given in advance only the first token was sampled.
            recorded = self.record and self._greedy and not self.forced
            segments = await self.segments()
            await self.auditor.after(
                Finished(seq, call, segments, self.choice, recorded, self.number)
            )
        if self.after is not None:
            await self.after(self, seq)

    async def _choose(self, auditor: Auditor) -> None:
        """Let `auto` decide how this call is done."""
        call = self.engine_call()
        sizes = {name: len(self.inputs[name]) for name in self.loans}
        sizes |= {name: self.drafts[name].most for name in call.messages}
        self.choice = await auditor.choose(call, sizes, seed=self.seed)
        self.policy = self.choice.policy
        self.record = bool(self.choice.measured)

    @property
    def borrowed(self) -> Mapping[str, Loan]:
        """The loans that the prompt is filled with."""
        return self.loans if self.policy.borrows else {}

    @property
    def _greedy(self) -> bool:
        return self.agent.sampling.temperature == 0

    def engine_call(self) -> engine_base.Call:
        """Room for literals, inputs, the producers' longest messages, and the answer."""
        known = sum(len(self.inputs[name]) for name in self.template.names if name in self.inputs)
        messages = sum(
            draft.most for name in self.template.names if (draft := self.drafts.get(name))
        )
        room = self.template.literal_tokens() + known + messages
        return engine_base.Call(
            node=self.node.name,
            template=self.template,
            capacity=room + self.agent.sampling.max_tokens,
            messages=frozenset(name for name, draft in self.drafts.items() if draft.spoken),
            # Where all is computed, too, levels are probed and offsets learned with what was lent.
            borrows=self.policy.borrows or self.auditor is not None,
            reads_prefix=self.policy.reads_prefix,
            feeds_prefix=self.policy.feeds_prefix,
            offsets=self.policy.offsets or (LINEAR.offsets if self.auditor else ""),
            namespace=self.namespace,
            priority=AHEAD if self.policy.ahead and self._waits else READY,
            next_uses=self.next_uses,
            run=self.run_name,
            goes_on=self.goes_on and self.policy.reads_prefix,
            replica=self.agent.replica,
        )

    @property
    def _waits(self) -> bool:
        """Whether an input is still being written, or read by the one who lends its KV."""
        written = all(draft.message for draft in self.drafts.values())
        return not (written and all(loan.settled for loan in self.borrowed.values()))

    async def segments(self) -> list[Segment]:
        """The whole prompt, messages and loans with their handles. Waits for both."""
        messages = {name: await draft.delivered() for name, draft in self.drafts.items()}
        ids = dict(self.inputs) | {name: message.ids for name, message in messages.items()}
        handles = {name: m.handle for name, m in messages.items() if m.handle}
        for name, loan in self.loans.items():
            if handle := await loan.given():
                handles[name] = handle
        return self.template.fill(ids, handles)

    @property
    def ready_at(self) -> float:
        """The clock when the last producer's final token was sampled, or the run began."""
        return max((draft.finished_at for draft in self.drafts.values()), default=self.started)

    def _start_deadline(self, deadline: asyncio.Timeout) -> None:
        seconds = self.agent.timeout_s
        if seconds is not None and deadline.when() is None:
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _decode(self, seq: EngineSequence) -> list[Token]:
        tokens = self.tokens = []
        stops, self.stopped = StopTexts(self.engine.codec, self.agent.sampling.stop), False
        self._begin()
        async with aclosing(seq.decode()) as decoded:
            async for token in decoded:
                tokens.append(token)
                if token.last == "stop":
                    continue
                if stops.end(token.id):
                    self.stopped = True
                    await seq.stop()
                    break
                self._tell(token.id)
        self.sampled = tokens[0].id
        return await self._force(seq, tokens[0].at) if self.forced else tokens

    def _begin(self) -> None:
        """The message begins with what the answer continues."""
        for token in self.begins:
            self._tell(token)

    def _tell(self, token: int) -> None:
        self.draft.append(token)
        if self.on_token:
            self.on_token(self.node.name, token)

    @property
    def begins(self) -> tuple[int, ...]:
        """The ids before the sampled ones that are part of the message."""
        return self.template.begins if self.agent.keep_begins else ()

    async def _force(self, seq: EngineSequence, first: float) -> list[Token]:
        """Answer with the forced tokens, computed in blocks instead of decoded one by one.

        Those who follow catch up after every block, as they would beside decoding. The last token
        is not computed, as if it had been sampled.
        """
        self.draft.restart()
        for token in (*self.begins, self.forced[0]):
            self.draft.append(token)
        tokens = [Token(self.forced[0], first)]
        for start in range(0, len(self.forced) - 1, FINE):
            await self.engine.quiet()
            block = self.forced[start : min(start + FINE, len(self.forced) - 1)]
            await seq.extend([Segment("placeholder", "answer", block)], [FORCED], settle=False)
            for token in self.forced[start + 1 : start + 1 + len(block)]:
                self.draft.append(token)
                tokens.append(Token(token, time.perf_counter()))
        tokens[-1] = replace(tokens[-1], last="length")
        return tokens

    async def _post(self, text: str) -> str:
        """The message that the agent's post-processing makes of its answer."""
        if self.agent.post is strip_thinking:
            return strip_thinking(text)
        kept: object = await called(self.agent.post, text)
        if not isinstance(kept, str):
            what = f"the post-processing of agent `{self.agent.name}`"
            raise KvcommError(f"{what} returned {type(kept).__name__}, not text")
        return kept

    async def _send(self, seq: EngineSequence, tokens: list[Token]) -> MessageSent:
        """Post-process, make the final ids known at once, then the handle and the record."""
        generated = [token.id for token in tokens if token.last != "stop"]
        codec, begins = self.engine.codec, self.begins
        text = codec.decode([*begins, *generated])
        if self.stopped:
            text = before(self.agent.sampling.stop, text, codec.decode(begins))
        kept = await self._post(text)
        sent = outgoing(codec, generated, lambda _: kept, begins)
        finished = tokens[-1].at
        self.draft.seal(sent.ids, finished)
        handle, reason = None, f"text only: {self.policy.name} mode"
        if not self.uses:
            reason = "nobody hears it"
        elif self.policy.hands_over:
            handle = await seq.publish(sent, self.uses)
            reason = "KV of the answer" if handle else "text only: no KV, or no room in the store"
        message = Message(self.node.name, sent.text, sent.ids, handle, finished)
        self.draft.deliver(message)
        return self.recorder.write(
            MessageSent,
            node=self.node.name,
            attempt=self.number,
            text=sent.text,
            tokens=len(sent.ids),
            handle=handle.key if handle else None,
            covered=len(handle.positions) if handle else 0,
            exact=handle.exact if handle else seq.exact,
            reason=reason,
            ids=list(sent.ids),
        )
