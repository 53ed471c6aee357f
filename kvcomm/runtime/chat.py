"""A conversation with a graph: turn by turn, with the KV of what was said before.

Every node keeps its own conversation: its earlier prompts are the user's turns, its messages the
assistant's, as the token ids that they were. So a node's next prompt begins with its last one, and
the prefix cache has it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from kvcomm.errors import ContextOverflow, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Result
from kvcomm.runtime.stream_events import StreamEvent


class Runs(Protocol):
    """A session, as far as a conversation needs it: see `kvcomm.session.Session`."""

    def run(self, graph: AgentGraph, task: str | None = None, **options: Any) -> Result: ...

    async def arun(self, graph: AgentGraph, task: str | None = None, **options: Any) -> Result: ...

    def stream(
        self, graph: AgentGraph, task: str | None = None, **options: Any
    ) -> Iterator[StreamEvent | Result]: ...

    def astream(
        self, graph: AgentGraph, task: str | None = None, **options: Any
    ) -> AsyncIterator[StreamEvent | Result]: ...


class Chat:
    """A conversation with `graph`; made by `Session.chat`.

    `turns` are the results so far, in order. A turn that fails is none of them: it may be tried
    again. The session's mode holds: `dense` computes the whole conversation in every turn.
    """

    def __init__(self, session: Runs, graph: AgentGraph) -> None:
        self.graph = graph
        self.turns: list[Result] = []
        self._session = session
        self._name = secrets.token_hex(8)
        self._answering = False

    def run(
        self,
        task: str | None = None,
        *,
        out: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Result:
        """The next turn: `Session.run`, behind the earlier turns.

        Raises `UsageError` while another turn is being answered, and `ContextOverflow` when the
        conversation does not fit the model's context any more.
        """
        with self._turn() as graph:
            result = self._session.run(
                graph, task, out=out, replay=None, seed=seed, timeout_s=timeout_s, **inputs
            )
        self.turns.append(result)
        return result

    async def arun(
        self,
        task: str | None = None,
        *,
        out: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Result:
        """`run`, asynchronous."""
        with self._turn() as graph:
            result = await self._session.arun(
                graph, task, out=out, replay=None, seed=seed, timeout_s=timeout_s, **inputs
            )
        self.turns.append(result)
        return result

    def stream(
        self,
        task: str | None = None,
        *,
        out: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> Iterator[StreamEvent | Result]:
        """The next turn: `Session.stream`, behind the earlier turns."""
        with self._turn() as graph:
            stream = self._session.stream(
                graph, task, out=out, replay=None, seed=seed, timeout_s=timeout_s, **inputs
            )
            with closing(cast("Generator[StreamEvent | Result, None, None]", stream)) as items:
                for item in items:
                    if isinstance(item, Result):
                        self.turns.append(item)
                    yield item

    async def astream(
        self,
        task: str | None = None,
        *,
        out: Path | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        **inputs: str,
    ) -> AsyncIterator[StreamEvent | Result]:
        """`stream`, asynchronous. Leaving the iteration early cancels the turn."""
        with self._turn() as graph:
            stream = self._session.astream(
                graph, task, out=out, replay=None, seed=seed, timeout_s=timeout_s, **inputs
            )
            events = cast("AsyncGenerator[StreamEvent | Result, None]", stream)
            async with aclosing(events) as items:
                async for item in items:
                    if isinstance(item, Result):
                        self.turns.append(item)
                    yield item

    def forget(self, oldest: int = 1) -> None:
        """Go on without so many of the oldest turns; the KV of the others is computed again.

        Raises `UsageError` where there are fewer.
        """
        if not 0 <= oldest <= len(self.turns):
            raise UsageError(f"cannot forget {oldest} of {len(self.turns)} turns")
        del self.turns[:oldest]

    @contextmanager
    def _turn(self) -> Iterator[AgentGraph]:
        """The graph as it goes on, for one turn at a time."""
        if self._answering:
            raise UsageError(
                "another turn of this chat is being answered: wait for its result, or hold a "
                "second conversation with session.chat(graph)"
            )
        self._answering = True
        try:
            yield self.graph.after([turn.said for turn in self.turns], self._name)
        except ContextOverflow as error:
            if not self.turns:
                raise
            raise ContextOverflow(
                f"turn {len(self.turns) + 1} of the chat does not fit: {error}. Most of it may be "
                "earlier turns: drop the oldest with chat.forget(1), or begin a new chat"
            ) from None
        finally:
            self._answering = False

    def __repr__(self) -> str:
        return f"Chat({self.graph!r}, {len(self.turns)} turns)"
