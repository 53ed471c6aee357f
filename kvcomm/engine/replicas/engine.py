"""The engine on Ray: replicas of one model, each with a store and a prefix cache of its own."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvcomm.engine.base import Call, Learned
from kvcomm.engine.bounded import Bounded
from kvcomm.engine.replicas.actor import About
from kvcomm.engine.replicas.moves import Moves
from kvcomm.engine.replicas.replica import LOOK_S, PATIENCE_S, Replica
from kvcomm.engine.replicas.sequence import ReplicaSequence
from kvcomm.engine.replicas.sharing import Sharing
from kvcomm.engine.tokens import TokenizerCodec
from kvcomm.errors import KvcommError, ReplicaLost, UsageError
from kvcomm.message import Handle
from kvcomm.reuse.plan import Verdict

# Runs whose replica is remembered. An older one that still goes on is placed once more.
RUNS = 4096


class RayEngine(Bounded):
    """Spreads runs over replicas and drives their rows from here; made by `load_ray`.

    All calls of a run go to one replica, where its messages' KV and its prefixes are: the one with
    the fewest rows when the run makes its first call. Calls that name no run stay together. A call
    that asks for a replica goes there, as long as that is up. `end` ends what was started for this
    engine.
    """

    def __init__(
        self, replicas: Sequence[Replica], about: About, end: Callable[[], None] = lambda: None
    ) -> None:
        self.replicas = tuple(replicas)
        self.model = about.model
        self.device = about.device
        self.dtype = about.dtype
        self.fingerprint = about.fingerprint
        self.weights = about.weights
        self.max_context = about.max_context
        self.capabilities = about.capabilities
        self.stop = about.stop
        self.token_bytes = about.token_bytes
        self.codec = TokenizerCodec(about.tokenizer)
        self.codec.most = about.max_context
        self.steps = 0
        self.moves = Moves(self)
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        self._end = end
        self.sharing = Sharing(self.replicas)

    def check(self, call: Call) -> None:
        """Raise `ContextOverflow`, or `UsageError` for a replica that does not exist."""
        super().check(call)
        count = len(self.replicas)
        if call.replica is not None and call.replica >= count:
            there = "there is only replica 0" if count == 1 else f"there are 0 to {count - 1}"
            raise UsageError(
                f"the agent of `{call.node}` asks for replica {call.replica}, but {there}: start "
                "more of them (--replicas), or place it elsewhere"
            )

    def home(self, call: Call) -> Replica:
        """The replica of a call. Raises `ReplicaLost` while none is up."""
        if call.replica is not None and self.replicas[call.replica].look():
            return self.replicas[call.replica]
        home = self._homes.get(call.run)
        if home is None or not home.look():
            up = self._up()
            if not up:
                raise ReplicaLost("no replica is up")
            home = min(up, key=lambda r: (r.rows, r.runs))
            home.runs += 1
            self._homes[call.run] = home
        self._homes.move_to_end(call.run)
        while len(self._homes) > RUNS:
            self._homes.popitem(last=False)
        return home

    def open(self, call: Call) -> ReplicaSequence:
        """A new sequence. Raises `ContextOverflow` when it cannot fit the model's context."""
        self.check(call)
        return ReplicaSequence(self, self.home(call), call, "open")

    async def enter(self, call: Call) -> ReplicaSequence:
        """A new sequence, when there is room for its row on a replica."""
        self.check(call)
        while True:
            await self._wait()
            seq = ReplicaSequence(self, self.home(call), call, "enter")
            try:
                await seq.enter()
            except ReplicaLost:
                await seq.close()
            except BaseException:
                await asyncio.shield(seq.close())
                raise
            else:
                return seq

    def spare(self, call: Call) -> ReplicaSequence | None:
        """A new sequence that gives way when it must, or None where there was no room lately."""
        self.check(call)
        try:
            home = self.home(call)
        except ReplicaLost:
            return None
        return None if home.full else ReplicaSequence(self, home, call, "spare")

    def _up(self) -> list[Replica]:
        """The replicas that are up, or have come back."""
        return [replica for replica in self.replicas if replica.look()]

    async def _wait(self) -> None:
        """Wait until a replica is up."""
        began = time.monotonic()
        while not self._up():
            if time.monotonic() - began > PATIENCE_S:
                raise KvcommError(
                    f"all {len(self.replicas)} replicas are lost, and none came back within "
                    f"{PATIENCE_S:g} s: look at the cluster (`ray status`)"
                )
            await asyncio.sleep(LOOK_S)
        self.sharing.look()

    async def release(self, handle: Handle, use: int) -> None:
        """Undo the pin of a published handle, wherever its KV is by now."""
        await self.moves.release(handle, use)

    async def _ask(self, call: Call, operation: str, *args: Any) -> Any:
        """An operation of the replica of a call."""
        while True:
            await self._wait()
            with suppress(ReplicaLost):
                value, _ = await self.home(call).call("ask", operation, *args)
                return value

    async def _all(self, operation: str, *args: Any) -> list[Any]:
        """The values of an operation on every replica that is up."""
        found = []
        for replica in self.replicas:
            if replica.look():
                try:
                    found.append((await replica.call(operation, *args))[0])
                except ReplicaLost:
                    continue
        return found

    async def outlook(self, call: Call) -> dict[str, Verdict]:
        """What the offset models of the call's replica say of its placeholders."""
        found: dict[str, Verdict] = await self._ask(call, "outlook", call)
        return found

    async def state_bytes(self, offsets: str, namespace: str = "") -> int:
        """The most bytes that a replica has learned."""
        return max(await self._all("ask", "state_bytes", offsets, namespace), default=0)

    async def load_state(self, folder: Path, namespace: str = "") -> Learned:
        """Every replica reads what was learned; the folder has to be on all of their machines."""
        if not self.capabilities.reuse:
            return Learned(None, 0, 0, self.capabilities.reason)
        return await self.sharing.read(folder, namespace)

    async def save_state(self, folder: Path, namespace: str = "") -> int:
        """Write what all replicas have learned. Raises `StateError`."""
        return await self.sharing.save(folder, namespace) if self.capabilities.reuse else 0

    async def quiet(self) -> None:
        """Wait until nothing is left to compute ahead or for a first token, on any replica."""
        await self._all("ask", "quiet")

    def close(self) -> None:
        """Save what was learned; end the replicas, and Ray where it was started for them."""
        super().close()
        self.sharing.close()
        for replica in self.replicas:
            replica.stop()
        self._end()
