"""The scheduler: runs the nodes of a DAG as their inputs come, and routes messages between them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress

from kvcomm.agents import Agent, Tool
from kvcomm.engine.base import Engine
from kvcomm.errors import NodeFailed, NodeTimeout, UsageError
from kvcomm.graphs import AgentGraph, Node
from kvcomm.message import Message, strip_thinking
from kvcomm.prompt import Codec, Template
from kvcomm.reuse.auto import Auto
from kvcomm.reuse.policy import Exact, Policy
from kvcomm.runtime.apart import called
from kvcomm.runtime.audit import Auditor
from kvcomm.runtime.draft import Draft
from kvcomm.runtime.loan import Loan
from kvcomm.runtime.node import After, Attempt, Interrupted
from kvcomm.runtime.result import Call
from kvcomm.sampling import call_seed
from kvcomm.trace.events import Audited, Failed, NodeStarted, Retried, ToolFinished
from kvcomm.trace.record import Recorder


class Scheduler:
    """One run of a graph. Every node is a task that waits for its producers' drafts.

    What a tool finds before any agent has spoken is treated as the run's inputs are: its readers
    wait for it, and its KV is shared between them.

    A node that fails is tried again as its agent says. When it has failed for good, its readers get
    a text in place of its message, or all other nodes are cancelled and `NodeFailed` is raised.
    `after` is awaited behind every call's message, with its row still open and its answer's logits
    recorded. With `auto`, that chooses each call's policy, and `audits` is what was measured of it;
    `plans` are the policies of single nodes. `forced` are answers given in advance, computed and
    not decoded (for benchmarks). KV of inputs that several nodes read is lent by the first of them
    to the others, where a policy borrows it, or if `lends` says so. `codec` is the engine's, as of
    the day that its prompts are to show.
    """

    def __init__(
        self,
        engine: Engine,
        graph: AgentGraph,
        policy: Policy,
        *,
        auto: Auto | None = None,
        plans: Mapping[str, Policy] | None = None,
        inputs: Mapping[str, str],
        seed: int,
        namespace: str = "",
        on_token: Callable[[str, int], None] | None = None,
        after: After | None = None,
        forced: Mapping[str, tuple[int, ...]] | None = None,
        lends: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self._engine = engine
        self._graph = graph
        self._policy = policy
        self._auto = auto
        self._plans = plans or {}
        self._auditor: Auditor | None = None
        self.audits: list[Audited] = []
        self.tools: list[ToolFinished] = []
        self.warnings: list[str] = []  # attempts and nodes that failed, where the run went on
        self.interrupted: Interrupted = []  # calls that were cancelled under way
        self.answered_at = 0.0  # the clock when the latest call was done, audits apart
        self._recorder = Recorder(None)
        self._seed = seed
        self._namespace = namespace
        self._on_token = on_token
        self._after = after
        self._forced = forced or {}
        self._run = graph.conversation or secrets.token_hex(8)
        self._sample = hashlib.sha256(repr(sorted(inputs.items())).encode()).hexdigest()
        self._texts = dict(inputs)
        self._templates = graph.templates(codec or engine.codec)
        self._inputs = {
            name: tuple(engine.codec.encode(inputs[name]))
            for name in {name for template in self._templates.values() for name in template.names}
            if name in inputs
        }
        self._drafts = {
            name: _draft(node, name, self._templates.get(node.name))
            for node in graph.nodes.values()
            for name in node.texts
        }
        self._early = _early(graph)
        lends = lends or (auto is not None and auto.target > 0)
        lends = lends or any(plan.borrows for plan in (policy, *self._plans.values()))
        # When every node is expected to run, by the engine's clock, and who reads an input when.
        self._step = {name: engine.steps + i for i, name in enumerate(graph.order)}
        self._readers: dict[str, list[str]] = defaultdict(list)
        for name in graph.order:
            if name in self._templates:
                for text in set(self._templates[name].names):
                    self._readers[text].append(name)
        self._loans = self._lent() if lends else {}
        self._started = time.perf_counter()
        self._released: set[str] = set()
        self._check_context()

    def _check_context(self) -> None:
        """Open no row that cannot fit: the error comes before anything runs."""
        for node in self._graph.nodes.values():
            if isinstance(node.agent, Agent):
                self._engine.check(self._attempt(node, node.agent, 1).engine_call())

    async def run(self, recorder: Recorder, calls: list[Call]) -> None:
        """Run every node; `calls` gets their reports in the order in which they finish."""
        self._recorder = recorder
        if self._auto is not None:
            self._auditor = Auditor(
                self._engine, self._auto, recorder, self._namespace, self.audits
            )
        self._started = time.perf_counter()
        tasks = [
            asyncio.create_task(self._node(node, calls), name=node.name)
            for node in self._graph.nodes.values()
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._release_all()

    def _reported(self, calls: list[Call]) -> Callable[[Call], None]:
        def note(call: Call) -> None:
            calls.append(call)
            self.answered_at = time.perf_counter()

        return note

    def _lent(self) -> dict[str, Loan]:
        """A loan for every input, and early tool's text, that at least two nodes read."""
        readers = {name: self._readers[name] for name in (*self._inputs, *self._early)}
        return {
            name: Loan(found[0], [self._step[other] for other in found[1:]])
            for name, found in readers.items()
            if len(found) > 1
        }

    def _loans_of(self, node: Node) -> dict[str, Loan]:
        """The loans whose texts the node reads, its own too."""
        template = self._templates.get(node.name)
        names = template.names if template else ()
        return {name: self._loans[name] for name in names if name in self._loans}

    async def _node(self, node: Node, calls: list[Call]) -> None:
        try:
            await self._attempts(node, calls)
        finally:
            for loan in self._loans.values():
                if loan.lender == node.name:
                    loan.settle(None)  # if nothing was lent, nothing will be
        await self._release(node)

    async def _attempts(self, node: Node, calls: list[Call]) -> None:
        for number in range(1, node.agent.retries + 2):
            try:
                async with asyncio.timeout(None) as deadline:
                    if isinstance(node.agent, Tool):
                        await self._use(node, node.agent, number, deadline)
                    else:
                        await self._early_texts(node)
                        attempt = self._attempt(node, node.agent, number)
                        await attempt.run(deadline, self._reported(calls))
            except Exception as raised:
                failure: Exception = raised
                if deadline.expired():
                    failure = NodeTimeout(node.name, node.agent.timeout_s or 0.0)
                drafts = [self._drafts[name] for name in node.texts]
                again = number <= node.agent.retries and not isinstance(failure, UsageError)
                if not again or any(draft.sealed for draft in drafts):
                    self._give_up(node, number, failure)
                    return
                for draft in drafts:
                    draft.restart()
                wait = node.agent.backoff_s * 2 ** (number - 1)
                error = _text(failure)
                self._recorder.write(
                    Retried, node=node.name, attempt=number, error=error, wait_s=wait
                )
                self.warnings.append(f"`{node.name}` failed and was tried again: {error}")
                await asyncio.sleep(wait)
            else:
                return

    def _give_up(self, node: Node, number: int, failure: Exception) -> None:
        """A node has failed for good: its readers get something else, or the run fails."""
        drafts = [self._drafts[name] for name in node.texts]
        said = [draft.message.text for draft in drafts if draft.message]
        if len(said) == len(drafts) and self._after is None:
            # It has answered: what comes behind (learning, say) is not worth the run.
            self._failed(node, failure, said[0])
            return
        care = node.agent
        skipped = care.on_error == "skip" and node.name != self._graph.answer
        instead = care.instead(node.name) if skipped or care.on_error == "fallback" else None
        self._failed(node, failure, instead)
        if instead is None:
            if isinstance(failure, UsageError):
                raise failure
            raise NodeFailed(node.name, number, failure) from failure
        now, ids = time.perf_counter(), tuple(self._engine.codec.encode(instead))
        for draft in drafts:
            if not draft.sealed:
                draft.seal(ids, now)
            if draft.message is None:  # sealed ids may have been read already: they stay
                text = self._engine.codec.decode(draft.ids)
                draft.deliver(Message(node.name, text, tuple(draft.ids), None, now))

    def _failed(self, node: Node, failure: Exception, instead: str | None) -> None:
        event = self._recorder.write(Failed, node=node.name, error=_text(failure), instead=instead)
        self.warnings.append(f"`{node.name}` failed: {event.said}")

    @property
    def answered(self) -> bool:
        """Whether every node has spoken, so that only audits are left."""
        return all(draft.message is not None for draft in self._drafts.values())

    @property
    def answer(self) -> str:
        """What the graph answered, once it has run."""
        message = self._drafts[self._graph.answer].message
        assert message is not None
        return message.text

    @property
    def said(self) -> dict[str, tuple[int, ...]]:
        """The ids of the inputs that were read, and of all messages and tools' texts, by name."""
        messages = {name: tuple(draft.ids) for name, draft in self._drafts.items()}
        return self._inputs | messages

    async def _early_texts(self, node: Node) -> None:
        """Wait for what tools find before any agent speaks, and take it for input."""
        for sender in node.senders:
            if sender.name in self._early:
                message = await self._drafts[sender.name].delivered()
                self._inputs[sender.name] = message.ids

    async def _use(self, node: Node, tool: Tool, number: int, deadline: asyncio.Timeout) -> None:
        """Run a tool on the inputs and what it hears, and send its texts."""
        texts = dict(self._texts)
        for sender in node.senders:
            texts[sender.name] = (await self._drafts[sender.name].delivered()).text
        if tool.timeout_s is not None:
            deadline.reschedule(asyncio.get_running_loop().time() + tool.timeout_s)
        ready = time.perf_counter()
        self._recorder.write(NodeStarted, node=node.name, attempt=number)
        found = tool.texts(await called(tool.run, texts))
        finished = time.perf_counter()
        codec, cut = self._engine.codec, []
        for name, text in found.items():
            ids = tuple(codec.encode(text))
            if len(ids) > tool.max_tokens:
                cut.append(name)
                ids = ids[: tool.max_tokens]
                found[name] = text = codec.decode(ids)
            self._drafts[name].seal(ids, finished)
            self._drafts[name].deliver(Message(node.name, text, ids, None, finished))
        used = self._recorder.write(
            ToolFinished,
            node=node.name,
            attempt=number,
            texts=found,
            tokens={name: len(self._drafts[name].ids) for name in found},
            cut=cut,
            ready_at=self._recorder.since_start(ready),
            finished_at=self._recorder.since_start(finished),
        )
        self.tools.append(used)

    def _attempt(self, node: Node, agent: Agent, number: int) -> Attempt:
        template = self._templates[node.name]
        policy, auditor = self._plans.get(node.name, self._policy), self._auditor
        if agent.exact and (policy.realigns or auditor):
            policy, auditor = Exact("the agent is exact"), None
        known = self._loans_of(node)
        lends = {n: loan for n, loan in known.items() if loan.lender == node.name}
        loans = {n: loan for n, loan in known.items() if n not in lends}
        return Attempt(
            engine=self._engine,
            node=node,
            agent=agent,
            template=template,
            policy=policy,
            inputs=self._inputs,
            drafts={
                s.name: self._drafts[s.name] for s in node.senders if s.name not in self._inputs
            },
            draft=self._drafts[node.name],
            uses=tuple(self._step[name] for name in self._graph.successors(node.name)),
            next_uses=self._next_uses(node, template),
            loans=loans,
            lends=lends,
            recorder=self._recorder,
            number=number,
            seed=call_seed(self._seed, self._sample, node.name, number),
            namespace=self._namespace,
            run_name=self._run,
            goes_on=bool(self._graph.conversation),
            started=self._begins(node),
            on_token=self._on_token,
            record=self._after is not None,
            after=self._after,
            auditor=auditor,
            forced=self._forced.get(node.name, ()),
            interrupted=self.interrupted,
        )

    def _next_uses(self, node: Node, template: Template) -> dict[str, int]:
        """When the inputs of a node will be read again, by another one."""
        found = {}
        for name in set(template.names) & self._inputs.keys():
            readers = self._readers[name]
            after = bisect_right(readers, self._step[node.name], key=self._step.__getitem__)
            if after < len(readers):
                found[name] = self._step[readers[after]]
        return found

    def _begins(self, node: Node) -> float:
        """The clock when the node's inputs were complete, but for messages."""
        found = [self._drafts[s.name].finished_at for s in node.senders if s.name in self._early]
        return max(self._started, *found, 0.0)

    async def _release(self, node: Node) -> None:
        """The node has used its inputs: let go of one pin on each of their handles."""
        self._released.add(node.name)
        messages = [self._drafts[sender.name].message for sender in node.senders]
        handles = [message.handle for message in messages if message]
        for loan in self._loans_of(node).values():
            if loan.lender != node.name:
                handles.append(await loan.given())
        for handle in handles:
            if handle:
                await self._engine.release(handle, self._step[node.name])

    async def _release_all(self) -> None:
        """After a failure: nodes that never finished still hold their inputs."""
        for loan in self._loans.values():
            loan.settle(None)  # a node that never began says nothing
        for node in self._graph.nodes.values():
            if node.name not in self._released:
                with suppress(Exception):
                    await self._release(node)


def _draft(node: Node, name: str, template: Template | None) -> Draft:
    """The draft of one of a node's texts."""
    if isinstance(node.agent, Tool):
        return Draft(name, node.agent.max_tokens, followable=False, spoken=False)
    # Unfinished text of an agent with a post-processing of its own is hardly its message.
    followable = node.agent.post is strip_thinking
    begun = template.begun if template and node.agent.keep_begins else 0
    return Draft(name, begun + node.agent.sampling.max_tokens, followable)


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
