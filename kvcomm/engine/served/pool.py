"""Several servers of one model: each runs whole graphs, and a lost one's runs begin again.

Messages, texts and what is learned stay on the server where they came up: nothing travels between
servers.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcomm.engine.base import Capabilities, LearnedState
from kvcomm.engine.bounded import Bounded
from kvcomm.engine.replica import ABOUT, SESSIONS
from kvcomm.engine.served.engine import ServedEngine
from kvcomm.errors import KvcommError, ModelError, ReplicaLost, ServerError

Task = Callable[[Any, Callable[[Any], None]], Awaitable[Any]]
# How often servers that are down are looked for, and how long, where none is up.
LOOK_S = 0.5
PATIENCE_S = 120.0
# Graphs and conversations whose server is remembered.
REMEMBERED = 4096


@dataclass(eq=False)
class Server:
    """One server, and the sessions on it by the names that the pool's sessions have.

    `tasks` are under way on it, `placed` were begun on it so far. It is not looked at again before
    the clock `again`, once it did not answer.
    """

    engine: ServedEngine
    tell: Callable[[str, Any], None]
    tasks: int = 0
    placed: int = 0
    up: bool = True
    again: float = 0.0
    sessions: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    def session(self, name: str, make: Callable[[Any], Any]) -> Any:
        """The session of this name, made on the engine where it is new."""
        found = self.sessions[name] = self.sessions.pop(name, None) or make(self.engine)
        if len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)
        return found

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


class ServerPool(Bounded):
    """Runs whole graphs on servers; see `kvcomm.engine.base.Replicated` for the contract.

    Raises `ModelError` for servers of different models.
    """

    fingerprint: str
    weights: str
    capabilities: Capabilities

    def __init__(self, engines: Sequence[ServedEngine]) -> None:
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
        self.servers = tuple(Server(engine, self._tell) for engine in engines)
        self._last: OrderedDict[str, Server] = OrderedDict()
        self._heard: dict[str, Callable[[Any], None]] = {}

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
        last = self._last.pop(key, None)
        if stay and last in up:
            up = [last]
        chosen = self._last[key] = min(up, key=lambda s: (s.tasks, s is not last, s.placed))
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        return chosen

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
            self._collect(replica)

    def _collect(self, server: Server) -> None:
        """Hand on the audits that were made on a server."""
        for name, session in server.sessions.items():
            if session.auto is not None and (audits := session.auto.take()):
                self._tell(name, audits)

    def _tell(self, name: str, item: Any) -> None:
        if item is None:
            self.unhear(name)
        elif (heard := self._heard.get(name)) is not None:
            heard(item)

    def hear(self, name: str, heard: Callable[[Any], None]) -> None:
        self._heard[name] = heard

    def unhear(self, name: str) -> None:
        if (heard := self._heard.pop(name, None)) is not None:
            heard(None)

    async def drain(self) -> None:
        """Wait until all audits are made, where servers answer."""
        for server in self.servers:
            for session in list(server.sessions.values()):
                await session.adrain()
            if server.up:
                await server.engine.drain()
            self._collect(server)

    async def load_state(self, folder: Path, namespace: str = "") -> LearnedState:
        """What was learned stays on the servers."""
        found = [await server.engine.load_state(folder, namespace) for server in self.servers]
        return max(found, key=lambda state: state.samples)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        return 0

    def close(self) -> None:
        """Close all connections."""
        super().close()
        for name in list(self._heard):
            self.unhear(name)
        for server in self.servers:
            server.engine.close()
