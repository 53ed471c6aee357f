"""A conversation with a graph: turn by turn, with the KV of what was said before.

Every node keeps its own conversation: its earlier prompts are the user's turns, its messages the
assistant's, as the token ids that they were. So a node's next prompt begins with its last one, and
the prefix cache has it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from kvcomm.background import Background
from kvcomm.errors import ContextOverflow, UsageError
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Result
from kvcomm.runtime.stream_events import StreamEvent
from kvcomm.runtime.twins import steps, waits


class Runs(Protocol):
    """A session, as far as a conversation needs it: see `kvcomm.session.Session`."""

    async def arun(self, graph: AgentGraph, task: str | None = None, **options: Any) -> Result: ...

    def astream(
        self, graph: AgentGraph, task: str | None = None, **options: Any
    ) -> AsyncGenerator[StreamEvent | Result, None]: ...

    def _loop(self) -> Background: ...


class Chat:
    """A conversation with `graph`; made by `Session.chat`.

    `turns` are the results so far, in order. A turn that fails is none of them: it may be tried
    again. The session's mode holds: `dense` computes the whole conversation in every turn. `run`
    and `stream` are `arun` and `astream` for callers that wait.
    """

    def __init__(self, session: Runs, graph: AgentGraph) -> None:
        self.graph = graph
        self.turns: list[Result] = []
        self._session = session
        self._loop = session._loop
        self._name = secrets.token_hex(8)
        self._answering = False

    async def arun(
        self,
        /,
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
            result = await self._session.arun(
                graph, task, out=out, replay=None, seed=seed, timeout_s=timeout_s, **inputs
            )
        self.turns.append(result)
        return result

    async def astream(
        self, /, task: str | None = None, **options: Any
    ) -> AsyncGenerator[StreamEvent | Result, None]:
        """The next turn as `Session.astream` yields it, with the options of `arun`.

        Leaving the iteration early cancels the turn.
        """
        with self._turn() as graph:
            stream = self._session.astream(graph, task, replay=None, **options)
            async with aclosing(stream) as items:
                async for item in items:
                    if isinstance(item, Result):
                        self.turns.append(item)
                    yield item

    run = waits(arun)
    stream = steps(astream)

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
