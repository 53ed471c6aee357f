"""What runs inside a replica's process: an engine, and its rows by the names the driver gave them.

Nothing here knows Ray: an actor is made of `Replica` in `load.py`. Errors raised on purpose travel
as data, because exceptions with constructors of their own do not survive pickling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from kvcomm.engine.base import Call, Capabilities, EngineSequence, Token
from kvcomm.engine.replicas.exchange import Exchange
from kvcomm.errors import KvcommError


@dataclass(frozen=True)
class About:
    """What a replica says of itself; `tokenizer` is the codec's, for a codec in the driver.

    `token_bytes` are those of one token's KV; 0 where KV is not handed on.
    """

    model: str
    device: str
    dtype: str
    fingerprint: str
    weights: str
    max_context: int
    capabilities: Capabilities
    tokenizer: Any
    stop: frozenset[int]
    token_bytes: int


@dataclass(frozen=True)
class State:
    """What a proxy mirrors of its row."""

    length: int = 0
    exact: bool = True
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """The result of an operation and the row behind it; or the error it raised on purpose."""

    value: Any = None
    state: State | None = None
    raised: tuple[type[KvcommError], str] | None = None


GONE = Reply()  # a row that this replica does not know: it was started anew meanwhile


@dataclass
class _Open:
    """A row and what is under way on it."""

    seq: EngineSequence | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    tokens: asyncio.Queue[Token | BaseException] = field(default_factory=asyncio.Queue)
    decoding: asyncio.Task[None] | None = None


class Replica(Exchange):
    """An engine behind calls whose arguments and results are plain data.

    Rows are named by the driver, so that one whose opening was cancelled can still be closed.
    """

    def __init__(self, model: str, device: str | None, dtype: str | None, memory: int | None):
        from kvcomm.engine.models import load_engine
        from kvcomm.engine.replicas.lessons import Learner

        self.engine = load_engine(model, device=device, dtype=dtype, memory=memory)
        if self.engine.capabilities.reuse:
            self.learner = Learner(self.engine)
        self._rows: dict[str, _Open] = {}

    async def about(self) -> About:
        """What the driver has to know of the model."""
        engine = self.engine
        return About(
            engine.model,
            engine.device,
            engine.dtype,
            engine.fingerprint,
            engine.weights,
            engine.max_context,
            engine.capabilities,
            engine.codec.tokenizer,
            engine.stop,
            getattr(engine, "slot_bytes", 0),
        )

    async def ask(self, operation: str, *args: Any) -> Reply:
        """An operation of the engine itself."""
        return await _outcome(getattr(self.engine, operation)(*args))

    async def learn(self, operation: str, *args: Any) -> Reply:
        """An operation of the learner; one that breaks off leaves nobody knows what behind."""
        try:
            return await _outcome(getattr(self.learner, operation)(*args))
        except BaseException:
            self.learner.taught = False
            raise

    async def open(self, name: str, how: str, call: Call, steps: int) -> Reply:
        """A row by `open`, `enter` or `spare`; the value says whether there was room.

        `steps` is the driver's clock, by which uses of KV are foretold.
        """
        self.engine.steps = max(self.engine.steps, steps)
        row = self._rows[name] = _Open()

        async def enter() -> bool:
            if how == "enter":
                row.seq = await self.engine.enter(call)
            else:
                row.seq = getattr(self.engine, how)(call)
            return row.seq is not None

        reply = await self._run(row, enter())
        if row.seq is None:
            self._rows.pop(name, None)
        return reply

    async def act(
        self, name: str, priority: int, operation: str, args: tuple[Any, ...], named: dict[str, Any]
    ) -> Reply:
        """An operation of a row, at the latest priority of its call."""
        row = self._rows.get(name)
        if row is None or row.seq is None:
            return GONE
        row.seq.hurry(priority)
        return await self._run(row, getattr(row.seq, operation)(*args, **named))

    async def compare(self, name: str, dense: str) -> Reply:
        """How far one row is from another."""
        row, other = self._rows.get(name), self._rows.get(dense)
        if row is None or row.seq is None or other is None or other.seq is None:
            return GONE
        return await self._run(row, row.seq.compare(other.seq))

    async def tokens(self, name: str) -> Reply:
        """The tokens of an answer that were not yet told, at least one."""
        row = self._rows.get(name)
        if row is None or row.seq is None:
            return GONE
        if row.decoding is None:
            row.decoding = asyncio.create_task(_pump(row.seq, row.tokens))
            row.tasks.add(row.decoding)

        async def some() -> list[Token]:
            items = [await row.tokens.get()]
            while not row.tokens.empty():
                items.append(row.tokens.get_nowait())
            told = [item for item in items if isinstance(item, Token)]
            if len(told) < len(items):
                if told:  # the error is for the next time
                    row.tokens.put_nowait(items[-1])
                elif isinstance(items[-1], BaseException):
                    raise items[-1]
            return told

        return await self._run(row, some())

    async def hurry(self, name: str, priority: int) -> None:
        """Change a row's priority."""
        row = self._rows.get(name)
        if row is not None and row.seq is not None:
            row.seq.hurry(priority)

    async def close(self, name: str) -> None:
        """Give a row back, whatever is under way on it."""
        row = self._rows.pop(name, None)
        if row is None:
            return
        for task in row.tasks:
            task.cancel()
        await asyncio.gather(*row.tasks, return_exceptions=True)
        if row.seq is not None:
            await row.seq.close()

    async def _run(self, row: _Open, operation: Coroutine[Any, Any, Any]) -> Reply:
        task = asyncio.ensure_future(_outcome(operation))
        row.tasks.add(task)
        try:
            reply = await task
        except asyncio.CancelledError:
            return GONE  # the row was closed meanwhile, and nobody listens any more
        finally:
            row.tasks.discard(task)
        return Reply(reply.value, _state(row.seq), reply.raised)


async def _outcome(operation: Coroutine[Any, Any, Any]) -> Reply:
    try:
        return Reply(await operation, State())
    except KvcommError as error:
        return Reply(state=State(), raised=(type(error), str(error)))


async def _pump(seq: EngineSequence, into: asyncio.Queue[Token | BaseException]) -> None:
    try:
        async for token in seq.decode():
            into.put_nowait(token)
    except Exception as error:
        into.put_nowait(error)


def _state(seq: EngineSequence | None) -> State:
    if seq is None:
        return State()
    return State(seq.length, seq.exact, dict(seq.phases.seconds))
