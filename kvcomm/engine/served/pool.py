"""Several servers of one model: each runs whole graphs, and a lost one's runs begin again.

Messages, texts and what is learned stay on the server where they came up: nothing travels between
servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvcomm.engine.base import Capabilities, LearnedState
from kvcomm.engine.replicated import ABOUT, ReplicatedEngine, SessionHost
from kvcomm.engine.served.engine import ServedEngine
from kvcomm.errors import KvcommError, ModelError, ReplicaLost, ServerError

Task = Callable[[Any, Callable[[Any], None]], Awaitable[Any]]
# How often servers that are down are looked for, and how long, where none is up.
LOOK_S = 0.5
PATIENCE_S = 120.0


class Server(SessionHost):
    """One server, and the sessions on it. It is not looked at again before the clock `again`, once
    it did not answer.
    """

    def __init__(self, engine: ServedEngine, tell: Callable[[str, Any], None]) -> None:
        super().__init__(engine)
        self._tell = tell
        self.tasks = self.placed = 0
        self.up, self.again = True, 0.0

    def tell(self, name: str, item: Any) -> None:
        self._tell(name, item)

    async def look(self) -> bool:
        """Whether it answers."""
        engine = self.engine
        try:
            asked = engine.background.start(engine.client.ask("models"))
            await asyncio.wrap_future(asked)
            self.up = True
        except (ServerError, ModelError):
            self.up, self.again = False, time.monotonic() + LOOK_S
        return self.up


class ServerPool(ReplicatedEngine):
    """Runs whole graphs on servers; see `kvcomm.engine.base.Replicated` for the contract.

    Raises `ModelError` for servers of different models.
    """

    fingerprint: str
    weights: str
    capabilities: Capabilities

    def __init__(self, engines: Sequence[ServedEngine]) -> None:
        super().__init__()
        first = engines[0]
        for other in engines[1:]:
            if other.fingerprint != first.fingerprint:
                raise ModelError(
                    f"{first.device} serves {first.model} and {other.device} {other.model}: give "
                    "only servers of one model, by one name"
                )
        vars(self).update({name: getattr(first, name) for name in ABOUT})
        self.device = ", ".join(engine.device for engine in engines)
        self.max_context = min(engine.max_context for engine in engines)
        weakest = min(engines, key=lambda engine: engine.capabilities.reuse)
        self.capabilities = weakest.capabilities
        self.codec = first.codec
        self.servers = tuple(Server(engine, self._told) for engine in engines)

    async def place(self, key: str = "", *, stay: bool = False) -> Server:
        """The server with the fewest tasks; of several, the one that had the `key` last.

        Raises `ServerError` when none answers for long.
        """
        began = time.monotonic()
        while not (up := [server for server in self.servers if server.up]):
            if time.monotonic() - began > PATIENCE_S:
                raise ServerError(
                    f"none of {self.device} has answered for {PATIENCE_S:g} s: start one"
                )
            await asyncio.sleep(LOOK_S)
            await self._look()
        await self._look()
        return self._chosen(up, key, stay)

    async def _look(self) -> None:
        """Look for servers that are down, now and then."""
        due = [s for s in self.servers if not s.up and s.again < time.monotonic()]
        await asyncio.gather(*(server.look() for server in due))

    def pickled(self, task: Task, parts: Mapping[str, Any]) -> Any:
        """The task as it is: it stays in this process."""
        return task

    async def do(
        self,
        replica: Server,
        task: Task,
        receive: Callable[[Any], Awaitable[None]],
        *,
        learns: bool = False,
    ) -> Any:
        items: asyncio.Queue[Any] = asyncio.Queue()
        end = object()

        async def work() -> Any:
            return await task(replica, items.put_nowait)

        replica.tasks, replica.placed = replica.tasks + 1, replica.placed + 1
        running = asyncio.ensure_future(work())
        running.add_done_callback(lambda _: items.put_nowait(end))
        try:
            while (item := await items.get()) is not end:
                await receive(item)
            return await running
        except asyncio.CancelledError:
            running.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await running
            while not items.empty():
                if (item := items.get_nowait()) is not end:
                    await receive(item)
            raise
        except KvcommError:
            if await replica.look():
                raise
            raise ReplicaLost(f"the server at {replica.engine.device} was lost") from None
        finally:
            replica.tasks -= 1
            replica.tell_audits()

    async def drain(self) -> None:
        """Wait until all audits are made, where servers answer."""
        for server in self.servers:
            await server.drain()
            if server.up:
                await server.engine.drain()
            server.tell_audits()

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """What was learned stays on the servers."""
        found = [await server.engine.load_state(folder, namespace) for server in self.servers]
        most: LearnedState = max(found, key=lambda state: state.samples)
        return most

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        return 0

    def close(self) -> None:
        """Close all connections."""
        super().close()
        self._unhear_all()
        for server in self.servers:
            server.engine.close()
