"""One run of a graph: its nodes as their inputs come, and the messages between them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kvcomm.agents import Agent, Tool
from kvcomm.engine.base import Engine
from kvcomm.errors import NodeFailed, NodeTimeout, UsageError
from kvcomm.graphs import AgentGraph, Node
from kvcomm.message import Message, strip_thinking
from kvcomm.prompt import Codec, Template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Exact, Policy
from kvcomm.runtime.apart import called
from kvcomm.runtime.call import Answered, CallAttempt, CallContext, CallPlan
from kvcomm.runtime.choice import chosen
from kvcomm.runtime.message_stream import MessageStream
from kvcomm.runtime.result import Call
from kvcomm.sampling import call_seed
from kvcomm.trace.events import Failed, NodeStarted, Retried, ToolFinished
from kvcomm.trace.record import Recorder


@dataclass(frozen=True)
class RunSpec:
    """What is run: a graph on inputs, by a policy.

    With `auto`, that chooses each call's policy; `policies` are those of single nodes. `forced`
    are answers given in advance, computed and not decoded (for benchmarks). `shares`: KV of inputs
    is kept for other calls, as it is where a policy realigns from it. `codec` is the engine's, as
    of the day that prompts are to show.
    """

    graph: AgentGraph
    policy: Policy
    inputs: Mapping[str, str]
    seed: int = 0
    namespace: str = ""
    auto: Auto | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    forced: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shares: bool = False
    codec: Codec | None = None


class GraphRun:
    """Every node is a task that waits for its producers' messages.

    What a tool finds before any agent has spoken is treated as the run's inputs are.

    A node that fails is tried again as its agent says. When it has failed for good, its readers get
    a text in place of its message, or all other nodes are cancelled and `NodeFailed` is raised.
    `on_answered` is called with what there is to audit, behind a call's message.
    """

    def __init__(
        self, engine: Engine, spec: RunSpec, on_token: Callable[[str, int], None] | None = None
    ) -> None:
        graph = spec.graph
        self.spec = spec
        self.calls: list[Call] = []  # in the order in which they finished
        self.tools: list[ToolFinished] = []
        self.warnings: list[str] = []  # attempts and nodes that failed, where the run went on
        self.answered_at = 0.0  # the clock when the latest call was done
        self._engine = engine
        self._graph = graph
        self.on_answered: Callable[[Answered], None] | None = None
        self.context = CallContext(
            engine, Recorder(None), spec.namespace, bool(graph.conversation), on_token
        )
        self._sample = hashlib.sha256(repr(sorted(spec.inputs.items())).encode()).hexdigest()
        self._templates = graph.templates(spec.codec or engine.codec)
        self._inputs = {
            name: tuple(engine.codec.encode(spec.inputs[name]))
            for name in {name for template in self._templates.values() for name in template.names}
            if name in spec.inputs
        }
        self._streams = {
            name: _stream(node, self._templates.get(node.name))
            for node in graph.nodes.values()
            for name in node.texts
        }
        self._early = _early(graph)
        policies = (spec.policy, *spec.policies.values())
        borrow = any(policy.options.bases == "borrowed" for policy in policies)
        self._shares = spec.shares or borrow or (spec.auto is not None and spec.auto.target > 0)
        self.started = time.perf_counter()
        self._done: set[str] = set()
        # Open no sequence that cannot fit: the error comes before anything runs.
        for node in graph.nodes.values():
            if isinstance(node.agent, Agent):
                engine.check(self._plan(node, node.agent, 1, choose=False).spec(self.context))

    async def run(self, recorder: Recorder) -> None:
        """Run every node."""
        self.context.recorder = recorder
        self.started = time.perf_counter()
        tasks = [
            asyncio.create_task(self._node(node), name=node.name)
            for node in self._graph.nodes.values()
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # After a failure: nodes that never finished still hold their inputs.
            for node in self._graph.nodes.values():
                with suppress(Exception):
                    self._release(node)

    def _reported(self, call: Call) -> None:
        self.calls.append(call)
        self.answered_at = time.perf_counter()

    async def _node(self, node: Node) -> None:
        for number in range(1, node.agent.retries + 2):
            try:
                async with asyncio.timeout(None) as deadline:
                    if isinstance(node.agent, Tool):
                        await self._use(node, node.agent, number, deadline)
                    else:
                        await self._early_texts(node)
                        plan = self._plan(node, node.agent, number)
                        attempt = CallAttempt(self.context, plan, self._streams[node.name])
                        answered = await attempt.run(deadline, self._reported)
                        if self.on_answered is not None:
                            self.on_answered(answered)
            except Exception as raised:
                failure: Exception = raised
                if deadline.expired():
                    failure = NodeTimeout(node.name, node.agent.timeout_s or 0.0)
                streams = [self._streams[name] for name in node.texts]
                again = number <= node.agent.retries and not isinstance(failure, UsageError)
                if not again or any(stream.sealed for stream in streams):
                    self._give_up(node, number, failure)
                    break
                for stream in streams:
                    stream.restart()
                wait = node.agent.backoff_s * 2 ** (number - 1)
                error = _text(failure)
                self.context.recorder.write(
                    Retried, node=node.name, attempt=number, error=error, wait_s=wait
                )
                self.warnings.append(f"`{node.name}` failed and was tried again: {error}")
                await asyncio.sleep(wait)
            else:
                break
        self._release(node)

    def _give_up(self, node: Node, number: int, failure: Exception) -> None:
        """A node has failed for good: its readers get something else, or the run fails."""
        streams = [self._streams[name] for name in node.texts]
        said = [stream.message.text for stream in streams if stream.message]
        if len(said) == len(streams):
            # It has answered: what comes behind (learning, say) is not worth the run.
            self._failed(node, failure, said[0])
            return
        agent = node.agent
        skipped = agent.on_error == "skip" and node.name != self._graph.answer
        instead = agent.instead(node.name) if skipped or agent.on_error == "fallback" else None
        self._failed(node, failure, instead)
        if instead is None:
            if isinstance(failure, UsageError):
                raise failure
            raise NodeFailed(node.name, number, failure) from failure
        now, ids = time.perf_counter(), tuple(self._engine.codec.encode(instead))
        for stream in streams:
            if not stream.sealed:
                stream.seal(ids, now)
            if stream.message is None:  # sealed ids may have been read already: they stay
                text = self._engine.codec.decode(stream.ids)
                stream.deliver(Message(node.name, text, tuple(stream.ids), None, now))

    def _failed(self, node: Node, failure: Exception, instead: str | None) -> None:
        event = self.context.recorder.write(
            Failed, node=node.name, error=_text(failure), instead=instead
        )
        self.warnings.append(f"`{node.name}` failed: {event.said}")

    @property
    def answer(self) -> str:
        """What the graph answered, once it has run."""
        message = self._streams[self._graph.answer].message
        assert message is not None
        return message.text

    @property
    def said(self) -> dict[str, tuple[int, ...]]:
        """The ids of the inputs that were read, and of all messages and tools' texts, by name."""
        messages = {name: tuple(stream.ids) for name, stream in self._streams.items()}
        return self._inputs | messages

    async def _early_texts(self, node: Node) -> None:
        """Wait for what tools find before any agent speaks, and take it for input."""
        for sender in node.senders:
            if sender.name in self._early:
                message = await self._streams[sender.name].delivered()
                self._inputs[sender.name] = message.ids

    async def _use(self, node: Node, tool: Tool, number: int, deadline: asyncio.Timeout) -> None:
        """Run a tool on the inputs and what it hears, and send its texts."""
        texts = dict(self.spec.inputs)
        for sender in node.senders:
            texts[sender.name] = (await self._streams[sender.name].delivered()).text
        if tool.timeout_s is not None:
            deadline.reschedule(asyncio.get_running_loop().time() + tool.timeout_s)
        ready = time.perf_counter()
        self.context.recorder.write(NodeStarted, node=node.name, attempt=number)
        found = tool.texts(await called(tool.run, texts))
        finished = time.perf_counter()
        codec, cut = self._engine.codec, []
        for name, text in found.items():
            ids = tuple(codec.encode(text))
            if len(ids) > tool.max_tokens:
                cut.append(name)
                ids = ids[: tool.max_tokens]
                found[name] = text = codec.decode(ids)
            self._streams[name].seal(ids, finished)
            self._streams[name].deliver(Message(node.name, text, ids, None, finished))
        used = self.context.recorder.write(
            ToolFinished,
            node=node.name,
            attempt=number,
            texts=found,
            tokens={name: len(self._streams[name].ids) for name in found},
            cut=cut,
            ready_at=self.context.recorder.since_start(ready),
            finished_at=self.context.recorder.since_start(finished),
        )
        self.tools.append(used)

    def _plan(self, node: Node, agent: Agent, number: int, *, choose: bool = True) -> CallPlan:
        spec, policy, choice = self.spec, self.spec.policies.get(node.name, self.spec.policy), None
        template = self._templates[node.name]
        plan = CallPlan(
            node,
            agent,
            template,
            policy,
            self._inputs,
            {s.name: self._streams[s.name] for s in node.senders if s.name not in self._inputs},
            number,
            call_seed(spec.seed, self._sample, node.name, number),
            self._begins(node),
            readers=len(self._graph.successors(node.name)),
            shares=self._shares,
            forced=spec.forced.get(node.name, ()),
        )
        if agent.exact and (policy.options.realigns or spec.auto):
            return replace(plan, policy=Exact("the agent is exact"))
        if spec.auto is None or not choose:
            return plan
        before = self._graph.order[: self._graph.order.index(node.name)]
        known = [self._templates[other].names for other in before if other in self._templates]
        choice = chosen(
            spec.auto,
            self._engine,
            plan.spec(self.context),
            {name: stream.most for name, stream in plan.streams.items() if stream.spoken},
            {name: self._inputs[name] for name in template.names if name in self._inputs},
            frozenset(name for names in known for name in names),
            plan.seed,
        )
        return replace(plan, policy=choice.policy, choice=choice)

    def _begins(self, node: Node) -> float:
        """The clock when the node's inputs were complete, but for messages."""
        found = [self._streams[s.name].finished_at for s in node.senders if s.name in self._early]
        return max(self.started, *found, 0.0)

    def _release(self, node: Node) -> None:
        """The node has used its inputs: let go of the KV of every message."""
        if node.name in self._done:
            return
        self._done.add(node.name)
        for sender in node.senders:
            message = self._streams[sender.name].message
            if message is not None and message.handle is not None:
                self._engine.release(message.handle)


def _stream(node: Node, template: Template | None) -> MessageStream:
    """The stream of one of a node's texts."""
    if isinstance(node.agent, Tool):
        return MessageStream(node.agent.max_tokens, followable=False, spoken=False)
    # Unfinished text of an agent with a post-processing of its own is hardly its message.
    followable = node.agent.post is strip_thinking
    begun = template.begun if template and node.agent.keep_begins else 0
    return MessageStream(begun + node.agent.sampling.max_tokens, followable)


def _early(graph: AgentGraph) -> frozenset[str]:
    """The texts of tools that no agent speaks to, directly or through other tools."""
    early: set[str] = set()
    for name in graph.order:
        node = graph.nodes[name]
        if isinstance(node.agent, Tool) and all(s.name in early for s in node.senders):
            early |= set(node.texts)
    return frozenset(early)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
