"""One attempt at one node: fill the prompt, answer, send the message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from kvcomm.agents import Agent
from kvcomm.engine.base import AHEAD, READY, Answer, CallSpec, Engine, EngineSequence, Token
from kvcomm.engine.usage import SegmentUsage
from kvcomm.errors import KvcommError, NotANumber, Preempted, StartOver
from kvcomm.graphs import Node
from kvcomm.message import Message, outgoing, strip_thinking
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.auto import Choice
from kvcomm.reuse.policy import Dense, Policy
from kvcomm.reuse.recipe import LINEAR
from kvcomm.runtime.apart import called
from kvcomm.runtime.filling import FINE, Filling
from kvcomm.runtime.message_stream import MessageStream
from kvcomm.runtime.report import Interrupted, Report
from kvcomm.runtime.result import Call
from kvcomm.runtime.stopping import StopTexts, before
from kvcomm.trace.events import MessageSent, NodeStarted
from kvcomm.trace.record import Recorder

FORCED = Dense("forced")


@dataclass
class CallContext:
    """What all calls of a run share. What calls that are cancelled leave goes to `interrupted`."""

    engine: Engine
    recorder: Recorder
    namespace: str = ""
    continues: bool = False
    on_token: Callable[[str, int], None] | None = None
    interrupted: list[Interrupted] = field(default_factory=list)


@dataclass(frozen=True)
class CallPlan:
    """One attempt at a node.

    `inputs` are texts as ids, `streams` messages of predecessors, `started` is the clock when the
    inputs were there. `readers` is how many nodes will read the message. `shares`: KV of inputs is
    kept for others. `forced` is an answer given in advance. `choice` is what `auto` chose, if it
    did: then the policy is its.
    """

    node: Node
    agent: Agent
    template: Template
    policy: Policy
    inputs: Mapping[str, tuple[int, ...]]
    streams: Mapping[str, MessageStream]
    attempt: int
    seed: int
    started: float
    readers: int = 0
    shares: bool = False
    forced: tuple[int, ...] = ()
    choice: Choice | None = None

    def spec(self, context: CallContext, *, ready: bool = False) -> CallSpec:
        """Room for literals, inputs, the producers' longest messages, and the answer."""
        names, sampling = self.template.names, self.agent.sampling
        known = sum(len(self.inputs[name]) for name in names if name in self.inputs)
        messages = sum(self.streams[name].most for name in names if name in self.streams)
        prompt = self.template.literal_tokens() + known + messages
        options = self.policy.options
        return CallSpec(
            node=self.node.name,
            template=self.template,
            capacity=prompt + sampling.max_tokens,
            answer_tokens=sampling.max_tokens,
            reuse=options,
            messages=frozenset(n for n, stream in self.streams.items() if stream.spoken),
            shares=self.shares,
            namespace=context.namespace,
            priority=AHEAD if options.ahead and not ready and self.waits else READY,
            continues=context.continues and options.reads_prefix,
            followed=self.readers > 0 and not self.forced and self.agent.post is strip_thinking,
        )

    @property
    def waits(self) -> bool:
        """Whether a message is still to come."""
        return any(stream.message is None for stream in self.streams.values())

    async def segments(self) -> list[Segment]:
        """The whole prompt, messages with their handles. Waits for them."""
        messages = {name: await stream.delivered() for name, stream in self.streams.items()}
        ids = dict(self.inputs) | {name: message.ids for name, message in messages.items()}
        handles = {name: m.handle for name, m in messages.items() if m.handle}
        return self.template.fill(ids, handles)


@dataclass(frozen=True)
class Answered:
    """A call that has answered, as an audit sees it: `moment` is what offset models knew then.

    `choice` is what `auto` chose, where it did and the call was done that way.
    """

    spec: CallSpec
    segments: list[Segment]
    usage: list[SegmentUsage]
    choice: Choice | None
    moment: object
    exact: bool
    attempt: int = 1

    @property
    def unread(self) -> bool:
        """Whether inputs were computed behind realigned texts: nobody else can realign them yet."""
        return not self.exact and any(
            usage.kind == "placeholder"
            and usage.name not in self.spec.messages
            and usage.source == "compute"
            and usage.tokens > LINEAR.short
            for usage in self.usage
        )


class CallAttempt:
    """Runs a call plan once."""

    def __init__(self, context: CallContext, plan: CallPlan, stream: MessageStream) -> None:
        self.plan = plan
        self.policy = plan.policy
        self._context = context
        self._engine = context.engine
        self._stream = stream
        self.report = Report(
            context.recorder,
            context.engine.codec,
            plan.node,
            plan.attempt,
            begins=plan.template.begins if plan.agent.keep_begins else (),
        )

    async def run(self, deadline: asyncio.Timeout, on_report: Callable[[Call], None]) -> Answered:
        """The whole call; `deadline` counts from its last input to its report.

        `on_report` is called when the message is out.
        """
        self.report.opened = time.perf_counter()
        filling = self._filling(deadline)
        early = True
        while True:
            seq, spec = await self._open(deadline, early=early and not filling.patient)
            try:
                await filling.run(seq)
                tokens = await self._answer(seq)
                await self._finish(seq, filling, tokens, on_report)
                deadline.reschedule(None)
                segments, usage = await self.plan.segments(), filling.usage.segments
                choice = self.plan.choice if self.policy is self.plan.policy else None
                attempt = self.plan.attempt
                return Answered(spec, segments, usage, choice, seq.moment, seq.exact, attempt)
            except (Preempted, StartOver) as error:
                if self._stream.sealed:
                    raise  # it has answered: nothing is to be said twice
                self._restart()
                filling.restart()
                early = isinstance(error, StartOver)
            except asyncio.CancelledError:
                if not self.report.written:
                    self._context.interrupted.append(self.report.interrupted(seq, filling))
                raise
            except NotANumber as error:
                if not filling.usage.reused or self._stream.sealed:
                    raise
                # What was reused may be damaged: the prompt is computed instead.
                self.policy = Dense(f"computed, because with reuse {error}")
                self._restart()
                filling = self._filling(deadline)
            finally:
                await asyncio.shield(seq.close())

    def _restart(self) -> None:
        """What it wrote does not count."""
        self.report.tokens = []
        if self._stream.ids:
            self._stream.restart()

    def _filling(self, deadline: asyncio.Timeout) -> Filling:
        plan = self.plan
        sampling = plan.agent.sampling
        first = replace(sampling, max_tokens=1) if plan.forced else sampling
        return Filling(
            plan.template,
            self.policy,
            plan.inputs,
            plan.streams,
            Answer(first, plan.seed),
            lambda: self._ready(deadline),
        )

    async def _open(
        self, deadline: asyncio.Timeout, *, early: bool
    ) -> tuple[EngineSequence, CallSpec]:
        """A sequence: at once to work ahead, else when all inputs are there."""
        plan = replace(self.plan, policy=self.policy)
        if not (early and self.policy.options.ahead):
            for stream in plan.streams.values():
                await stream.delivered()
            self._ready(deadline)
        spec = plan.spec(self._context)
        seq = self._engine.open(spec)
        self._context.recorder.write(
            NodeStarted, node=plan.node.name, attempt=plan.attempt, prompt_capacity=spec.capacity
        )
        return seq, spec

    def _ready(self, deadline: asyncio.Timeout) -> None:
        """The last input is complete."""
        finished = (stream.finished_at for stream in self.plan.streams.values())
        self.report.ready = max(finished, default=self.plan.started)
        seconds = self.plan.agent.timeout_s
        if seconds is not None and deadline.when() is None:
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _finish(
        self,
        seq: EngineSequence,
        filling: Filling,
        tokens: list[Token],
        on_report: Callable[[Call], None],
    ) -> None:
        """Send the message and report. What is left for the engine is off its readers' way."""
        sent = await self._send(seq, tokens)
        try:
            await asyncio.sleep(0)  # its readers go first
            choice = self.plan.choice
            if choice is not None and seq.exact and not choice.measured:
                await seq.finish(await self.plan.segments(), LINEAR.offsets)
            else:
                await seq.finish()
        finally:  # it has answered, also where it is cancelled now
            on_report(self.report.finished(seq, filling, tokens, sent))

    async def _answer(self, seq: EngineSequence) -> list[Token]:
        report, tokens = self.report, list[Token]()
        report.tokens, report.stopped = tokens, False
        stops = StopTexts(self._engine.codec, self.plan.agent.sampling.stop)
        for token in report.begins:  # the message begins with what the answer continues
            self._emit(token)
        async with aclosing(seq.answer()) as answer:
            async for drawn in answer:
                tokens.append(drawn)
                if drawn.last == "stop":
                    continue
                if stops.end(drawn.id):
                    report.stopped = True
                    await seq.stop(len(tokens))
                    break
                self._emit(drawn.id)
        report.sampled = tokens[0].id
        return await self._force(seq, tokens[0].at) if self.plan.forced else tokens

    def _emit(self, token: int) -> None:
        self._stream.append(token)
        if self._context.on_token:
            self._context.on_token(self.plan.node.name, token)

    async def _force(self, seq: EngineSequence, first: float) -> list[Token]:
        """Answer with the forced tokens, computed in blocks instead of decoded one by one.

        Those who follow catch up after every block, as they would beside decoding. The last token
        is not computed, as if it had been sampled.
        """
        forced = self.plan.forced
        self._stream.restart()
        for token in (*self.report.begins, forced[0]):
            self._stream.append(token)
        tokens = [Token(forced[0], first)]
        for start in range(0, len(forced) - 1, FINE):
            await self._engine.drain()
            block = forced[start : min(start + FINE, len(forced) - 1)]
            segment = Segment("placeholder", "answer", block, index=-1)
            await seq.extend([segment], FORCED, settle=False)
            for token in forced[start + 1 : start + 1 + len(block)]:
                self._stream.append(token)
                tokens.append(Token(token, time.perf_counter()))
        tokens[-1] = replace(tokens[-1], last="length")
        return tokens

    async def _post(self, text: str) -> str:
        """The message that the agent's post-processing makes of its answer."""
        agent = self.plan.agent
        if agent.post is strip_thinking:
            return strip_thinking(text)
        kept: object = await called(agent.post, text)
        if not isinstance(kept, str):
            what = f"the post-processing of agent `{agent.name}`"
            raise KvcommError(f"{what} returned {type(kept).__name__}, not text")
        return kept

    async def _send(self, seq: EngineSequence, tokens: list[Token]) -> MessageSent:
        """Post-process, make the final ids known at once, then the handle and the record."""
        plan, begins, codec = self.plan, self.report.begins, self._engine.codec
        generated = [token.id for token in tokens if token.last != "stop"]
        text = codec.decode([*begins, *generated])
        if self.report.stopped:
            text = before(plan.agent.sampling.stop, text, codec.decode(begins))
        kept = await self._post(text)
        sent = outgoing(codec, generated, lambda _: kept, begins)
        finished = tokens[-1].at
        self._stream.seal(sent.ids, finished)
        handle, reason = None, f"text only: {self.policy.name} mode"
        if not plan.readers:
            reason = "nobody hears it"
        elif self.policy.options.publishes:
            handle = await seq.publish(sent, plan.readers)
            reason = "KV of the answer" if handle else "text only: no KV"
        self._stream.deliver(Message(plan.node.name, sent.text, sent.ids, handle, finished))
        return self._context.recorder.write(
            MessageSent,
            node=plan.node.name,
            attempt=plan.attempt,
            text=sent.text,
            tokens=len(sent.ids),
            handle=handle.key if handle else None,
            covered=len(handle.positions) if handle else 0,
            exact=handle.exact if handle else seq.exact,
            reason=reason,
            ids=list(sent.ids),
        )
