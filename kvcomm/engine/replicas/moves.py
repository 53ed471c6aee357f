"""Messages whose readers are on other replicas: their KV follows them where that is faster."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvcomm.engine.replicas import measure
from kvcomm.engine.replicas.costs import Choice, Rate, choose
from kvcomm.engine.replicas.exchange import LOST
from kvcomm.engine.replicas.replica import Replica
from kvcomm.engine.replicas.sequence import Arrival
from kvcomm.errors import ReplicaLost
from kvcomm.message import Handle
from kvcomm.trace.text import megabytes, seconds

if TYPE_CHECKING:
    from kvcomm.engine.replicas.engine import RayEngine

# A move that takes so many times as long as expected, and a second, is given up.
PATIENCE, LEAST_S = 10.0, 1.0


@dataclass
class _Sent:
    """A published message: the uses still to come, and its copies by replica and life."""

    uses: list[int]
    copies: dict[tuple[int, int], asyncio.Task[Arrival]] = field(default_factory=dict)


class Moves:
    """Handles that name their replica, and copies of the KV behind them on others.

    A message is moved at most once to a replica: later readers find the copy. It is pinned there
    for the uses that are still to come, and gone with the last one.
    """

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine
        self._sent: dict[str, _Sent] = {}
        self._numbers = itertools.count()
        self._moving: dict[tuple[int, ...], Rate] = {}
        self._computing: dict[tuple[int, int], Rate] = {}

    def publish(self, handle: Handle, home: Replica, life: int, uses: Sequence[int]) -> Handle:
        """A handle as the runtime knows it: its key says on which replica, and in which life."""
        key = f"{handle.key}@{home.index}.{life}.{next(self._numbers)}"
        self._sent[key] = _Sent(list(uses))
        return replace(handle, key=key)

    async def fetch(self, handle: Handle, home: Replica) -> Arrival:
        """A handle as `home` knows it, moved there first where that is faster than computing."""
        source, life = self._source(handle)
        sent = self._sent.get(handle.key, _Sent([]))
        copy = sent.copies.get(home.life)
        if copy is None:
            if not source.look() or source.lives != life:
                return Arrival(None, f"replica {source.index} was lost")
            if source is home:
                return Arrival(_local(handle))
            nbytes = len(handle.positions) * self._engine.token_bytes
            try:
                choice = await self._choice(source, home, nbytes, len(handle.positions))
            except ReplicaLost as error:
                return Arrival(None, str(error))
            if not choice.move or not sent.uses:
                return Arrival(None, f"on replica {source.index}; {choice.reason}")
            # Another reader may have come to the same choice meanwhile.
            copy = sent.copies.get(home.life) or asyncio.create_task(
                self._move(_local(handle), tuple(sent.uses), source, home, choice.expected_s)
            )
            sent.copies[home.life] = copy
        # A reader that is cancelled leaves the copy to the others, or to `release`.
        return await asyncio.shield(copy)

    async def _choice(self, source: Replica, home: Replica, nbytes: int, tokens: int) -> Choice:
        way = (*source.life, *home.life)
        if way not in self._moving:
            self._moving[way] = await measure.moving(source, home)
        at = home.life
        if at not in self._computing:
            self._computing[at] = await measure.prefill(self._engine, home)
        return choose(self._moving[way], self._computing[at], nbytes, tokens)

    def computed(self, home: Replica, tokens: int, spent: float) -> None:
        """So long a replica has just taken to prefill so much."""
        rate = self._computing.get(home.life)
        if rate is not None and tokens >= min(measure.CHUNKS):
            rate.learn(tokens, spent)

    async def _move(
        self,
        here: Handle,
        uses: tuple[int, ...],
        source: Replica,
        home: Replica,
        expected: float,
    ) -> Arrival:
        way = (*source.life, *home.life)
        limit = PATIENCE * expected + LEAST_S
        began = time.perf_counter()
        # In a list the reference stays one: the array goes from replica to replica, not here.
        ref = [source.actor.export.remote(here.key)]
        try:
            nbytes, why = await home.call("adopt", here.key, ref, uses, limit)
        except ReplicaLost as error:
            return Arrival(None, str(error))
        if why:
            lost = f"replica {source.index} was lost" if why == LOST else ""
            return Arrival(None, lost or f"on replica {source.index}; {why}")
        spent = time.perf_counter() - began
        if way in self._moving:
            self._moving[way].learn(nbytes, spent)
        came = f"its KV came from replica {source.index}, {megabytes(nbytes)} in {seconds(spent)}"
        return Arrival(here, came)

    async def release(self, handle: Handle, use: int) -> None:
        """Undo the pin of a handle for the reader at step `use`, and that of its copies.

        Waits for copies that are on their way, so that none arrives when nobody is left to let go
        of it.
        """
        source, life = self._source(handle)
        _let_go(_local(handle), use, source, life)
        sent = self._sent.get(handle.key)
        if sent is None or use not in sent.uses:
            return
        sent.uses.remove(use)
        if not sent.uses:
            del self._sent[handle.key]
        for (index, lives), copy in sent.copies.items():
            home = self._engine.replicas[index]

            def arrived(
                copy: asyncio.Task[Arrival], home: Replica = home, life: int = lives
            ) -> None:
                if not copy.cancelled() and not copy.exception() and copy.result().handle:
                    _let_go(_local(handle), use, home, life)

            if copy.done():
                arrived(copy)
            else:
                copy.add_done_callback(arrived)
        if sent.copies:
            await asyncio.wait(sent.copies.values())

    def _source(self, handle: Handle) -> tuple[Replica, int]:
        index, life, _ = handle.key.partition("@")[2].split(".")
        return self._engine.replicas[int(index)], int(life)


def _local(handle: Handle) -> Handle:
    """The handle as its own replica knows it."""
    return replace(handle, key=handle.key.partition("@")[0])


def _let_go(handle: Handle, use: int, home: Replica, life: int) -> None:
    """Undo a pin; with a replica its pins are gone."""
    if home.up and home.lives == life:
        home.send("ask", "release", handle, use)
